// How much float32 accuracy convolutions may give up for speed, after torch.set_float32_matmul_precision.
#pragma once

namespace volnet::conv3d {

enum class Precision { highest, high, medium };

// Of this process; another thread may set it at any time.
Precision precision();
void set_precision(Precision value);

}  // namespace volnet::conv3d

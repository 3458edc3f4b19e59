// How much float32 accuracy convolutions may give up for speed, after torch.set_float32_matmul_precision.
#pragma once

#include <optional>

namespace volnet::conv3d {

enum class Precision { highest, high, medium };

// That of this thread where it has one, else that of the process, which another thread may set at any time.
Precision precision();
void set_precision(Precision value);

std::optional<Precision> thread_precision();
void set_thread_precision(std::optional<Precision> value);

}  // namespace volnet::conv3d

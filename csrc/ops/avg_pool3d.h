// Average pooling over any axes: what avg_pool3d and adaptive_avg_pool3d share.
#pragma once

#include "ops/pooling.h"
#include "ops/tensors.h"

namespace volnet {

struct Divisor {
  bool count_include_pad;
  int64_t override_by;  // 0: none
};

// x, grad: [N, C, D, H, W] as the axes say; op: who asks, for messages.
Tensor average(const char* op, const Tensor& x, const pooling::Axes& axes, const Divisor& divisor);
Tensor average_backward(const char* op, const Tensor& grad, const std::vector<int64_t>& input_size,
                        const pooling::Axes& axes, const Divisor& divisor, bool channels_last);

}  // namespace volnet

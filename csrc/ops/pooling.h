// What the pooling operators have in common around their kernels.
#pragma once

#include "kernels/pooling/tables.h"
#include "ops/tensors.h"

namespace volnet::pooling {

using Axes = std::array<Axis, 3>;  // d, h, w

// The arguments on one axis after another: d, h, w.
struct Window {
  std::vector<int64_t> kernel, stride, padding, dilation;
};

inline void check(const char* op, const Tensor& x, const Window& window) {
  VOLNET_CHECK(x.dim() == 5, op, ": x must be [N, C, D, H, W], got ", shape_text(sizes_of(x)));
  VOLNET_CHECK(window.kernel.size() == 3 && window.stride.size() == 3 && window.padding.size() == 3 &&
                   window.dilation.size() == 3,
               op, ": kernel_size, stride, padding and dilation must have three numbers each");
  for (size_t i = 0; i < 3; ++i) {
    VOLNET_CHECK(window.kernel[i] > 0 && window.stride[i] > 0 && window.dilation[i] > 0, op,
                 ": kernel_size, stride and dilation must be at least 1, got ", shape_text(window.kernel),
                 ", ", shape_text(window.stride), ", ", shape_text(window.dilation));
    VOLNET_CHECK(window.padding[i] >= 0 && window.padding[i] <= window.kernel[i] / 2, op,
                 ": padding must be at least 0 and at most half of kernel_size, got ",
                 shape_text(window.padding), " for ", shape_text(window.kernel));
    const auto axis = static_cast<int64_t>(i);
    VOLNET_CHECK(x.size(1) > 0 && x.size(2 + axis) > 0, op, ": only the batch may be empty, got ",
                 shape_text(sizes_of(x)));
  }
}

// Output voxels as torch counts them: with ceil_mode a last window may reach past the padding, but starts
// before it.
inline int64_t output_size(int64_t in, const Window& window, size_t i, bool ceil_mode) {
  const int64_t stride = window.stride[i];
  const int64_t room = in + 2 * window.padding[i] - window.dilation[i] * (window.kernel[i] - 1) - 1 +
                       (ceil_mode ? stride - 1 : 0);
  if (room < 0) return 0;
  const int64_t out = room / stride + 1;
  return ceil_mode && (out - 1) * stride >= in + window.padding[i] ? out - 1 : out;
}

// One output needs no stride, and a kernel may then count on a stride within the volume.
inline Axis axis_of(int64_t in, int64_t out, const Window& window, size_t i) {
  return {in, out, window.kernel[i], out == 1 ? 1 : window.stride[i], window.padding[i], window.dilation[i]};
}

inline void check_adaptive(const char* op, const Tensor& x, const std::vector<int64_t>& output_size) {
  VOLNET_CHECK(x.dim() == 5, op, ": x must be [N, C, D, H, W], got ", shape_text(sizes_of(x)));
  VOLNET_CHECK(output_size.size() == 3, op, ": output_size must have three numbers, got ",
               shape_text(output_size));
  for (size_t i = 0; i < 3; ++i) {
    const auto axis = static_cast<int64_t>(i);
    VOLNET_CHECK(output_size[i] >= 0, op, ": output_size must be at least 0, got ", shape_text(output_size));
    VOLNET_CHECK(x.size(1) > 0 && x.size(2 + axis) > 0, op, ": only the batch may be empty, got ",
                 shape_text(sizes_of(x)));
  }
}

// The axes of adaptive pooling, with their tables.
class AdaptiveAxes {
 public:
  AdaptiveAxes(const std::vector<int64_t>& in, const std::vector<int64_t>& out)
      : d_(in[2], adaptive_windows(in[2], out[0])),
        h_(in[3], adaptive_windows(in[3], out[1])),
        w_(in[4], adaptive_windows(in[4], out[2])) {}
  operator Axes() const { return {d_, h_, w_}; }

 private:
  TableAxis d_, h_, w_;
};

// The three numbers of the output's space from a gradient [N, C, OD, OH, OW] of an input of input_size.
inline std::vector<int64_t> check_adaptive_backward(const char* op, const Tensor& grad,
                                                    const std::vector<int64_t>& input_size) {
  VOLNET_CHECK(grad.dim() == 5 && input_size.size() == 5 && input_size[0] == grad.size(0) &&
                   input_size[1] == grad.size(1),
               op, ": gradient ", shape_text(sizes_of(grad)), " does not belong to an input of ",
               shape_text(input_size));
  return {grad.size(2), grad.size(3), grad.size(4)};
}

}  // namespace volnet::pooling

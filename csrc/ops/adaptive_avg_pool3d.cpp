// torch.ops.volnet.adaptive_avg_pool3d and _adaptive_avg_pool3d_backward: avg_pool3d's kernels over windows
// in tables.
#include "ops/avg_pool3d.h"

namespace volnet {
namespace {

constexpr const char* op = "adaptive_avg_pool3d";
constexpr Divisor window_size{false, 0};

Tensor forward(const Tensor& x, std::vector<int64_t> output_size) {
  pooling::check_adaptive(op, x, output_size);
  return average(op, x, pooling::AdaptiveAxes(sizes_of(x), output_size), window_size);
}

Tensor backward(const Tensor& grad, std::vector<int64_t> input_size, bool channels_last) {
  const auto output_size = pooling::check_adaptive_backward(op, grad, input_size);
  return average_backward(op, grad, input_size, pooling::AdaptiveAxes(input_size, output_size), window_size,
                          channels_last);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) {
  m.def("adaptive_avg_pool3d(Tensor x, int[] output_size) -> Tensor");
  m.def("_adaptive_avg_pool3d_backward(Tensor grad, int[] input_size, bool channels_last) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) {
  m.impl("adaptive_avg_pool3d", TORCH_BOX(&forward));
  m.impl("_adaptive_avg_pool3d_backward", TORCH_BOX(&backward));
}

}  // namespace volnet

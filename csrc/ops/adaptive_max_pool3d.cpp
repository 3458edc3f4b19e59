// torch.ops.volnet.adaptive_max_pool3d, adaptive_max_pool3d_with_indices and _adaptive_max_pool3d_backward:
// max_pool3d's kernels over windows in tables.
#include "ops/max_pool3d.h"

namespace volnet {
namespace {

constexpr const char* op = "adaptive_max_pool3d";

Tensor forward(const Tensor& x, std::vector<int64_t> output_size) {
  pooling::check_adaptive(op, x, output_size);
  return std::get<0>(maximum(op, x, pooling::AdaptiveAxes(sizes_of(x), output_size), Indices::none));
}

std::tuple<Tensor, Tensor> forward_with_indices(const Tensor& x, std::vector<int64_t> output_size,
                                                bool narrow) {
  pooling::check_adaptive(op, x, output_size);
  auto [y, indices] = maximum(op, x, pooling::AdaptiveAxes(sizes_of(x), output_size),
                              narrow ? Indices::narrow : Indices::wide);
  return {y, *indices};
}

Tensor backward(const Tensor& grad, const Tensor& indices, std::vector<int64_t> input_size,
                bool channels_last) {
  const auto output_size = pooling::check_adaptive_backward(op, grad, input_size);
  check_indices(op, grad, indices, input_size);
  return maximum_backward(op, grad, indices, input_size, pooling::AdaptiveAxes(input_size, output_size),
                          channels_last);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) {
  m.def("adaptive_max_pool3d(Tensor x, int[] output_size) -> Tensor");
  m.def(
      "adaptive_max_pool3d_with_indices(Tensor x, int[] output_size, bool narrow=False) -> (Tensor, "
      "Tensor)");
  m.def(
      "_adaptive_max_pool3d_backward(Tensor grad, Tensor indices, int[] input_size, bool channels_last) -> "
      "Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) {
  m.impl("adaptive_max_pool3d", TORCH_BOX(&forward));
  m.impl("adaptive_max_pool3d_with_indices", TORCH_BOX(&forward_with_indices));
  m.impl("_adaptive_max_pool3d_backward", TORCH_BOX(&backward));
}

}  // namespace volnet

// torch.ops.volnet.smooth_l1_sum and _smooth_l1_sum_backward.
#include "kernels/smooth_l1/smooth_l1.h"

#include "ops/along.h"
#include "ops/dtypes.h"

namespace volnet {
namespace {

constexpr const char* op = "smooth_l1";

void check(const Tensor& x, const Tensor& target) {
  VOLNET_CHECK(sizes_of(x) == sizes_of(target) && x.scalar_type() == target.scalar_type(), op,
               ": the target must be like the input, ", type_name(x.scalar_type()), ' ',
               shape_text(sizes_of(x)), ", got ", type_name(target.scalar_type()), ' ',
               shape_text(sizes_of(target)));
}

// f(begin, end, piece) for pieces of so many numbers.
template <class F>
void for_numbers(int64_t count, const F& f) {
  for_each_piece((count + piece_along - 1) / piece_along, [&](int64_t piece, int64_t) {
    f(piece * piece_along, std::min((piece + 1) * piece_along, count), piece);
  });
}

Tensor forward(const Tensor& input, const Tensor& target, double beta) {
  check(input, target);
  const Tensor x = dense(input, op), t = in_order_of(target, x, op);
  Tensor result = empty_plain<double>({}, op);
  with_floating_type(x.scalar_type(), op, "input", [&](auto type) {
    using T = decltype(type);
    const auto kernel = best_for<T>(smooth_l1::forward_f32, smooth_l1::forward_bf16, smooth_l1::forward_f64);
    const int64_t count = x.numel();
    std::vector<double> sums(static_cast<size_t>((count + piece_along - 1) / piece_along));
    for_numbers(count, [&](int64_t begin, int64_t end, int64_t piece) {
      kernel({x.const_data_ptr(), t.const_data_ptr(), beta, &sums[static_cast<size_t>(piece)]}, begin, end);
    });
    *mutable_data<double>(result) = std::accumulate(sums.begin(), sums.end(), 0.0);
    return 0;
  });
  return result;
}

Tensor backward(const Tensor& grad, const Tensor& input, const Tensor& target, double beta) {
  check(input, target);
  VOLNET_CHECK(grad.scalar_type() == ScalarType::Double && grad.numel() == 1, op,
               " backward: the gradient must be one float64, got ", type_name(grad.scalar_type()), ' ',
               shape_text(sizes_of(grad)));
  const Tensor x = dense(input, op), t = in_order_of(target, x, op);
  return with_floating_type(x.scalar_type(), op, "input", [&](auto type) {
    using T = decltype(type);
    const auto kernel =
        best_for<T>(smooth_l1::backward_f32, smooth_l1::backward_bf16, smooth_l1::backward_f64);
    Tensor dx = empty_like<T>(x, op);
    void* const to = dx.mutable_data_ptr();
    const double scale = *data<double>(grad);
    for_numbers(x.numel(), [&](int64_t begin, int64_t end, int64_t) {
      kernel({x.const_data_ptr(), t.const_data_ptr(), to, beta, scale}, begin, end);
    });
    return dx;
  });
}

}  // namespace
}  // namespace volnet

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) {
  m.def("smooth_l1_sum(Tensor input, Tensor target, float beta) -> Tensor");
  m.def("_smooth_l1_sum_backward(Tensor grad, Tensor input, Tensor target, float beta) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) {
  m.impl("smooth_l1_sum", TORCH_BOX(&volnet::forward));
  m.impl("_smooth_l1_sum_backward", TORCH_BOX(&volnet::backward));
}

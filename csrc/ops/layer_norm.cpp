// torch.ops.volnet.layer_norm and _layer_norm_backward.
#include "kernels/layer_norm/layer_norm.h"

#include "ops/activation.h"
#include "ops/coefficients.h"
#include "ops/tensors.h"

namespace volnet {
namespace {

using layer_norm::Kernel;
using layer_norm::Params;

constexpr const char* op = "layer_norm";

struct Kernels {
  const isa::KernelTable<Kernel>&forward, &backward;
};
template <class S>
Kernels kernels();
template <>
Kernels kernels<float>() {
  return {layer_norm::forward_f32, layer_norm::backward_f32};
}
template <>
Kernels kernels<bfloat16>() {
  return {layer_norm::forward_bf16, layer_norm::backward_bf16};
}
template <>
Kernels kernels<double>() {
  return {layer_norm::forward_f64, layer_norm::backward_f64};
}

// Elements that a piece of work touches, about.
constexpr int64_t piece_elements = int64_t{1} << 16;

struct Arguments {
  int64_t columns;
  std::optional<Tensor> weight, bias;  // [columns] in all
  std::optional<Tensor> residual;      // like x
  double epsilon;
  Activation activation;
  double negative_slope;
};

// The rows of a call, and the memory that the kernel's Params point to.
template <class S>
struct Call {
  using A = compute_t<S>;

  Params params{};
  int64_t rows, rows_of_piece, pieces;
  Tensor x;
  std::optional<Tensor> residual;
  std::vector<A> weight, bias;

  Call(const Tensor& input, const Arguments& arguments) : x(torch::stable::contiguous(input)) {
    const auto in_compute_type = [](const std::vector<double>& values) {
      return std::vector<A>(values.begin(), values.end());
    };
    weight = in_compute_type(coefficients(arguments.weight, arguments.columns, 1.0, op));
    bias = in_compute_type(coefficients(arguments.bias, arguments.columns, 0.0, op));
    if (arguments.residual) residual = torch::stable::contiguous(*arguments.residual);
    rows = x.numel() / arguments.columns;
    rows_of_piece = std::max<int64_t>(piece_elements / arguments.columns, 1);
    pieces = (rows + rows_of_piece - 1) / rows_of_piece;
    params.columns = arguments.columns;
    params.x = x.const_data_ptr();
    params.residual = residual ? residual->const_data_ptr() : nullptr;
    params.weight = weight.data();
    params.bias = bias.data();
    params.epsilon = arguments.epsilon;
    params.activation = arguments.activation;
    params.negative_slope = arguments.negative_slope;
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;
};

template <class S>
Tensor forward_as(const Tensor& x, const Arguments& arguments) {
  Tensor y = empty_plain<S>(sizes_of(x), op);
  if (x.numel() == 0) return y;
  Call<S> call(x, arguments);
  call.params.y = y.mutable_data_ptr();
  const Kernel kernel = kernels<S>().forward.best();
  for_each_piece(call.pieces, [&](int64_t piece, int64_t) {
    const int64_t begin = piece * call.rows_of_piece;
    kernel(call.params, begin, std::min(begin + call.rows_of_piece, call.rows), nullptr);
  });
  return y;
}

// dx, dweight and dbias [columns] in the compute type, and dresidual, [0] where it is not wanted.
template <class S>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward_as(const Tensor& grad, const Tensor& x,
                                                       const Arguments& arguments, bool residual_gradient) {
  using A = compute_t<S>;
  const int64_t columns = arguments.columns;
  Tensor dx = empty_plain<S>(sizes_of(x), op), dweight = empty_plain<A>({columns}, op),
         dbias = empty_plain<A>({columns}, op);
  Tensor dz = empty_plain<S>(residual_gradient ? sizes_of(x) : std::vector<int64_t>{0}, op);
  std::fill_n(mutable_data<A>(dweight), columns, A{0});
  std::fill_n(mutable_data<A>(dbias), columns, A{0});
  if (x.numel() == 0) return {dx, dweight, dbias, dz};
  const Tensor dy = torch::stable::contiguous(grad);
  Call<S> call(x, arguments);
  call.params.grad = dy.const_data_ptr();
  call.params.y = dx.mutable_data_ptr();
  call.params.dz_copy = residual_gradient ? dz.mutable_data_ptr() : nullptr;
  const memory::Scratch sums(call.pieces * 2 * columns * static_cast<int64_t>(sizeof(A)), op);
  const Kernel kernel = kernels<S>().backward.best();
  for_each_piece(call.pieces, [&](int64_t piece, int64_t) {
    const int64_t begin = piece * call.rows_of_piece;
    A* const own = sums.as<A>() + piece * 2 * columns;
    std::fill_n(own, 2 * columns, A{0});
    kernel(call.params, begin, std::min(begin + call.rows_of_piece, call.rows), own);
  });
  constexpr int64_t block = 64;
  for_each_piece((columns + block - 1) / block, [&](int64_t i, int64_t) {
    const int64_t first = i * block, count = std::min(block, columns - first);
    double weights[block] = {}, biases[block] = {};
    for (int64_t piece = 0; piece < call.pieces; ++piece) {
      const A* const own = sums.as<A>() + piece * 2 * columns + first;
      for (int64_t k = 0; k < count; ++k) {
        weights[k] += own[k];
        biases[k] += own[columns + k];
      }
    }
    std::copy_n(weights, count, mutable_data<A>(dweight) + first);
    std::copy_n(biases, count, mutable_data<A>(dbias) + first);
  });
  return {dx, dweight, dbias, dz};
}

void check(const Tensor& x, int64_t columns, const std::optional<Tensor>& other, const char* name) {
  VOLNET_CHECK(columns > 0 ? x.numel() % columns == 0 : columns == 0 && x.numel() == 0, op, ": ",
               shape_text(sizes_of(x)), " has no rows of ", columns, " values");
  VOLNET_CHECK(!other || (sizes_of(*other) == sizes_of(x) && other->scalar_type() == x.scalar_type()), op,
               ": ", name, " must be like x, ", shape_text(sizes_of(x)));
}

Tensor forward(const Tensor& x, int64_t columns, std::optional<Tensor> weight, std::optional<Tensor> bias,
               std::optional<Tensor> residual, double eps, std::string activation, double negative_slope) {
  check(x, columns, residual, "residual");
  const Arguments arguments{columns,       weight, bias, residual, eps, activation_of(activation, op),
                            negative_slope};
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return forward_as<float>(x, arguments);
    case ScalarType::BFloat16:
      return forward_as<bfloat16>(x, arguments);
    case ScalarType::Double:
      return forward_as<double>(x, arguments);
    default:
      VOLNET_CHECK(false, op, ": x must be float32, float64 or bfloat16");
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, int64_t columns,
                                                    std::optional<Tensor> weight, std::optional<Tensor> bias,
                                                    std::optional<Tensor> residual, double eps,
                                                    std::string activation, double negative_slope,
                                                    bool residual_gradient) {
  check(x, columns, residual, "residual");
  check(x, columns, grad, "the gradient");
  const Arguments arguments{columns,       weight, bias, residual, eps, activation_of(activation, op),
                            negative_slope};
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return backward_as<float>(grad, x, arguments, residual_gradient);
    case ScalarType::BFloat16:
      return backward_as<bfloat16>(grad, x, arguments, residual_gradient);
    case ScalarType::Double:
      return backward_as<double>(grad, x, arguments, residual_gradient);
    default:
      VOLNET_CHECK(false, op, ": x must be float32, float64 or bfloat16");
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) {
  m.def(
      "layer_norm(Tensor x, int columns, Tensor? weight, Tensor? bias, Tensor? residual, float eps, "
      "str activation, float negative_slope) -> Tensor");
  m.def(
      "_layer_norm_backward(Tensor grad, Tensor x, int columns, Tensor? weight, Tensor? bias, "
      "Tensor? residual, float eps, str activation, float negative_slope, bool residual_gradient) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) {
  m.impl("layer_norm", TORCH_BOX(&forward));
  m.impl("_layer_norm_backward", TORCH_BOX(&backward));
}

}  // namespace volnet

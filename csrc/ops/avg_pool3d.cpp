// torch.ops.volnet.avg_pool3d and _avg_pool3d_backward.
#include "kernels/avg_pool3d/avg_pool3d.h"

#include "ops/pooling.h"
#include "ops/tensors.h"

namespace volnet {
namespace {

using avg_pool3d::Kernel;
using avg_pool3d::Params;
using pooling::Axis;
using pooling::Window;

constexpr const char* op = "avg_pool3d";

// The kernels of one dtype in one direction: by table, and the scalar ones for sizes that no vector kernel
// takes.
struct Kernels {
  const isa::KernelTable<Kernel>&plain, &channels_last;
  Kernel plain_any_size, channels_last_any_size;
  int64_t (*scratch)(const Params&);
};

template <class T>
Kernels forward_kernels();
template <>
Kernels forward_kernels<float>() {
  return {avg_pool3d::forward_plain_f32, avg_pool3d::forward_channels_last_f32,
          avg_pool3d::scalar::forward_plain_f32, avg_pool3d::scalar::forward_channels_last_f32,
          avg_pool3d::forward_scratch};
}
template <>
Kernels forward_kernels<bfloat16>() {
  return {avg_pool3d::forward_plain_bf16, avg_pool3d::forward_channels_last_bf16,
          avg_pool3d::scalar::forward_plain_bf16, avg_pool3d::scalar::forward_channels_last_bf16,
          avg_pool3d::forward_scratch};
}
template <>
Kernels forward_kernels<double>() {
  return {avg_pool3d::forward_plain_f64, avg_pool3d::forward_channels_last_f64,
          avg_pool3d::scalar::forward_plain_f64, avg_pool3d::scalar::forward_channels_last_f64,
          avg_pool3d::forward_scratch};
}

template <class T>
Kernels backward_kernels();
template <>
Kernels backward_kernels<float>() {
  return {avg_pool3d::backward_plain_f32, avg_pool3d::backward_channels_last_f32,
          avg_pool3d::scalar::backward_plain_f32, avg_pool3d::scalar::backward_channels_last_f32,
          avg_pool3d::backward_scratch};
}
template <>
Kernels backward_kernels<bfloat16>() {
  return {avg_pool3d::backward_plain_bf16, avg_pool3d::backward_channels_last_bf16,
          avg_pool3d::scalar::backward_plain_bf16, avg_pool3d::scalar::backward_channels_last_bf16,
          avg_pool3d::backward_scratch};
}
template <>
Kernels backward_kernels<double>() {
  return {avg_pool3d::backward_plain_f64, avg_pool3d::backward_channels_last_f64,
          avg_pool3d::scalar::backward_plain_f64, avg_pool3d::scalar::backward_channels_last_f64,
          avg_pool3d::backward_scratch};
}

// Elements that a piece of work touches, about: small enough for the pieces of one layer to keep many cores
// busy.
constexpr int64_t piece_elements = int64_t{1} << 16;

// Makes every row of the result. row_work: elements that a row of one channel reads.
void run(const Kernels& kernels, const Params& params, Layout5 layout, int64_t rows_of_plane,
         int64_t row_work) {
  // With one channel both layouts are the same memory, and the plain kernel has longer vectors.
  const bool plain = layout == Layout5::plain || params.channels == 1;
  const bool vector = avg_pool3d::fits_vector(params);
  const Kernel kernel = plain ? (vector ? kernels.plain.best() : kernels.plain_any_size)
                              : (vector ? kernels.channels_last.best() : kernels.channels_last_any_size);
  const int64_t rows = params.batch * (plain ? params.channels : 1) * rows_of_plane;
  const int64_t rows_per_piece =
      std::max<int64_t>(piece_elements / (row_work * (plain ? 1 : params.channels)), 1);
  const int64_t pieces = (rows + rows_per_piece - 1) / rows_per_piece;
  const int64_t floats = plain && vector ? avg_pool3d::round_up(kernels.scratch(params)) : 0;
  const memory::Scratch scratch(worker_count(pieces) * floats * static_cast<int64_t>(sizeof(float)), op);
  for_each_piece(pieces, [&](int64_t piece, int64_t worker) {
    const int64_t begin = piece * rows_per_piece;
    kernel(params, begin, std::min(begin + rows_per_piece, rows), scratch.as<float>() + worker * floats);
  });
}

int64_t reads(const Axis& axis) { return std::min(axis.kernel, axis.in); }

template <class T>
Tensor pool(const Tensor& input, const Window& window, bool ceil_mode, bool count_include_pad,
            int64_t divisor_override) {
  const Layout5 layout = layout_of(input);
  const Tensor x = to_layout(input, layout, op);
  std::vector<int64_t> sizes = sizes_of(x);
  Axis axes[3];
  for (size_t i = 0; i < 3; ++i) {
    const int64_t in = sizes[2 + i], out = pooling::output_size(in, window, i, ceil_mode);
    VOLNET_CHECK(out > 0 && window.kernel[i] <= in, op, ": kernel_size ", shape_text(window.kernel),
                 " is larger than the input of ", shape_text(sizes_of(x)));
    axes[i] = pooling::axis_of(in, out, window, i);
    sizes[2 + i] = out;
  }
  Tensor y = empty_volume<T>(sizes, layout, op);
  if (numel(sizes) == 0) return y;
  const Params params{x.const_data_ptr(), y.mutable_data_ptr(), sizes[0], sizes[1], axes[0], axes[1], axes[2],
                      count_include_pad,  divisor_override};
  run(forward_kernels<T>(), params, layout, params.d.out * params.h.out,
      reads(params.d) * reads(params.h) * params.w.in);
  return y;
}

template <class T>
Tensor pool_backward(const Tensor& grad, const std::vector<int64_t>& input_size, const Window& window,
                     bool count_include_pad, int64_t divisor_override, Layout5 layout) {
  const Tensor dy = to_layout(grad, layout, op);
  Tensor dx = empty_volume<T>(input_size, layout, op);
  if (numel(input_size) == 0) return dx;
  const auto axis = [&](size_t i) {
    return pooling::axis_of(input_size[2 + i], dy.size(static_cast<int64_t>(2 + i)), window, i);
  };
  const Params params{
      dy.const_data_ptr(), dx.mutable_data_ptr(), input_size[0], input_size[1], axis(0), axis(1), axis(2),
      count_include_pad,   divisor_override};
  run(backward_kernels<T>(), params, layout, params.d.in * params.h.in,
      pooling::most_outputs(params.d) * pooling::most_outputs(params.h) * params.w.in);
  return dx;
}

Tensor forward(const Tensor& x, std::vector<int64_t> kernel_size, std::vector<int64_t> stride,
               std::vector<int64_t> padding, bool ceil_mode, bool count_include_pad,
               std::optional<int64_t> divisor_override) {
  const Window window{kernel_size, stride, padding, {1, 1, 1}};
  pooling::check(op, x, window);
  VOLNET_CHECK(divisor_override != 0, op, ": divisor_override must not be 0");
  const int64_t divisor = divisor_override.value_or(0);
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return pool<float>(x, window, ceil_mode, count_include_pad, divisor);
    case ScalarType::BFloat16:
      return pool<bfloat16>(x, window, ceil_mode, count_include_pad, divisor);
    case ScalarType::Double:
      return pool<double>(x, window, ceil_mode, count_include_pad, divisor);
    default:
      VOLNET_CHECK(false, op, ": x must be float32, float64 or bfloat16");
  }
}

Tensor backward(const Tensor& grad, std::vector<int64_t> input_size, std::vector<int64_t> kernel_size,
                std::vector<int64_t> stride, std::vector<int64_t> padding, bool count_include_pad,
                std::optional<int64_t> divisor_override, bool channels_last) {
  const Window window{kernel_size, stride, padding, {1, 1, 1}};
  pooling::check(op, grad, window);
  VOLNET_CHECK(input_size.size() == 5 && input_size[0] == grad.size(0) && input_size[1] == grad.size(1), op,
               ": gradient ", shape_text(sizes_of(grad)), " does not belong to an input of ",
               shape_text(input_size));
  VOLNET_CHECK(divisor_override != 0, op, ": divisor_override must not be 0");
  const Layout5 layout = channels_last ? Layout5::channels_last : Layout5::plain;
  const int64_t divisor = divisor_override.value_or(0);
  switch (grad.scalar_type()) {
    case ScalarType::Float:
      return pool_backward<float>(grad, input_size, window, count_include_pad, divisor, layout);
    case ScalarType::BFloat16:
      return pool_backward<bfloat16>(grad, input_size, window, count_include_pad, divisor, layout);
    case ScalarType::Double:
      return pool_backward<double>(grad, input_size, window, count_include_pad, divisor, layout);
    default:
      VOLNET_CHECK(false, op, ": the gradient must be float32, float64 or bfloat16");
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) {
  m.def(
      "avg_pool3d(Tensor x, int[] kernel_size, int[] stride, int[] padding, bool ceil_mode, "
      "bool count_include_pad, int? divisor_override) -> Tensor");
  m.def(
      "_avg_pool3d_backward(Tensor grad, int[] input_size, int[] kernel_size, int[] stride, int[] padding, "
      "bool count_include_pad, int? divisor_override, bool channels_last) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) {
  m.impl("avg_pool3d", TORCH_BOX(&forward));
  m.impl("_avg_pool3d_backward", TORCH_BOX(&backward));
}

}  // namespace volnet

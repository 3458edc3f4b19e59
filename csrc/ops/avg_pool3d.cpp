// torch.ops.volnet.avg_pool3d and _avg_pool3d_backward, and the way of adaptive_avg_pool3d to their kernels.
#include "ops/avg_pool3d.h"

#include "kernels/avg_pool3d/avg_pool3d.h"

namespace volnet {
namespace {

using avg_pool3d::Kernel;
using avg_pool3d::Params;
using pooling::Axes;
using pooling::Axis;
using pooling::Window;

// The kernels of one dtype in one direction: by table, and the scalar ones for sizes that no vector kernel
// takes.
struct Kernels {
  const isa::KernelTable<Kernel>&plain, &channels_last;
  Kernel plain_any_size, channels_last_any_size;
  int64_t (*scratch)(const Params&, bool plain);
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

template <class T>
constexpr avg_pool3d::Join join = avg_pool3d::scalar::join_f32;
template <>
constexpr avg_pool3d::Join join<bfloat16> = avg_pool3d::scalar::join_bf16;
template <>
constexpr avg_pool3d::Join join<double> = avg_pool3d::scalar::join_f64;

// Elements that a piece of work touches, about: small enough for the pieces of one layer to keep many cores
// busy.
constexpr int64_t piece_elements = int64_t{1} << 16;
// Larger gradients, in bytes, have mostly left the caches by the time they are read.
constexpr int64_t stream_from = int64_t{32} << 20;

// Makes every row of the result. row_work: elements that a row of one channel reads.
void run(const char* op, const Kernels& kernels, const Params& params, bool plain, int64_t rows_of_plane,
         int64_t row_work) {
  const bool vector = avg_pool3d::fits_vector(params, plain);
  const Kernel kernel = plain ? (vector ? kernels.plain.best() : kernels.plain_any_size)
                              : (vector ? kernels.channels_last.best() : kernels.channels_last_any_size);
  const int64_t rows = params.batch * (plain ? params.channels : 1) * rows_of_plane;
  const int64_t rows_per_piece =
      std::max<int64_t>(piece_elements / (row_work * (plain ? 1 : params.channels)), 1);
  const int64_t pieces = (rows + rows_per_piece - 1) / rows_per_piece;
  const int64_t floats = vector ? avg_pool3d::round_up(kernels.scratch(params, plain)) : 0;
  const memory::Scratch scratch(worker_count(pieces) * floats * static_cast<int64_t>(sizeof(float)), op);
  for_each_piece(pieces, [&](int64_t piece, int64_t worker) {
    const int64_t begin = piece * rows_per_piece;
    kernel(params, begin, std::min(begin + rows_per_piece, rows), scratch.as<float>() + worker * floats);
  });
}

// With one channel both layouts are the same memory, and the plain kernel has longer vectors.
bool runs_plain(const Params& params, Layout5 layout) {
  return layout == Layout5::plain || params.channels == 1;
}

int64_t reads(const Axis& axis) { return std::min(axis.kernel, axis.in); }

// Elements that a row of the result reads, of one channel.
int64_t row_reads(const Params& p) { return reads(p.d) * reads(p.h) * p.w.in; }

template <class T>
void pool_in_parts(const char* op, const Params& params, bool plain, const pooling::Parts& parts) {
  const auto d = windows_in_parts(params.d, parts.d), h = windows_in_parts(params.h, parts.h);
  const int64_t row = params.w.out * (plain ? 1 : params.channels);
  const int64_t rows = params.batch * (plain ? params.channels : 1) * params.d.out * params.h.out;
  const memory::Scratch sums(rows * parts.count() * row * static_cast<int64_t>(sizeof(compute_t<T>)), op);
  Params part = params;
  part.result = sums.as<compute_t<T>>();
  part.d = axis_in_parts(params.d, d);
  part.h = axis_in_parts(params.h, h);
  part.divisor_override = 1;
  part.wide_result = true;
  run(op, forward_kernels<T>(), part, plain, part.d.out * part.h.out,
      std::max<int64_t>(row_reads(params) / parts.count(), 1));
  const int64_t rows_per_piece = std::max<int64_t>(piece_elements / (parts.count() * row), 1);
  for_each_piece((rows + rows_per_piece - 1) / rows_per_piece, [&](int64_t piece, int64_t) {
    const int64_t begin = piece * rows_per_piece;
    join<T>(params, parts, sums.as<compute_t<T>>(), row, begin, std::min(begin + rows_per_piece, rows));
  });
}

template <class T>
Tensor pool(const char* op, const Tensor& input, const Axes& axes, const Divisor& divisor) {
  const Layout5 layout = layout_of(input);
  const Tensor x = to_layout(input, layout, op);
  std::vector<int64_t> sizes = sizes_of(x);
  for (size_t i = 0; i < 3; ++i) sizes[2 + i] = axes[i].out;
  Tensor y = empty_volume<T>(sizes, layout, op);
  if (numel(sizes) == 0) return y;
  const Params params{
      x.const_data_ptr(),        y.mutable_data_ptr(), sizes[0], sizes[1], axes[0], axes[1], axes[2],
      divisor.count_include_pad, divisor.override_by};
  const bool plain = runs_plain(params, layout);
  const int64_t work = row_reads(params);
  const auto parts = parts_for(params.d, params.h, work * (plain ? 1 : params.channels), piece_elements);
  if (parts.count() > 1) {
    pool_in_parts<T>(op, params, plain, parts);
  } else {
    run(op, forward_kernels<T>(), params, plain, params.d.out * params.h.out, work);
  }
  return y;
}

template <class T>
Tensor pool_backward(const char* op, const Tensor& grad, const std::vector<int64_t>& input_size,
                     const Axes& axes, const Divisor& divisor, Layout5 layout) {
  const Tensor dy = to_layout(grad, layout, op);
  Tensor dx = empty_volume<T>(input_size, layout, op);
  if (numel(input_size) == 0) return dx;
  const pooling::TouchingAxis d(axes[0]), h(axes[1]), w(axes[2]);
  const Params params{dy.const_data_ptr(),
                      dx.mutable_data_ptr(),
                      input_size[0],
                      input_size[1],
                      d,
                      h,
                      w,
                      divisor.count_include_pad,
                      divisor.override_by,
                      numel(input_size) * static_cast<int64_t>(sizeof(T)) >= stream_from};
  const int64_t gathered = pooling::most_outputs(params.d) * pooling::most_outputs(params.h) * params.w.in;
  run(op, backward_kernels<T>(), params, runs_plain(params, layout), params.d.in * params.h.in,
      std::max<int64_t>(gathered, 1));
  return dx;
}

Axes axes_of(const std::vector<int64_t>& in, const std::vector<int64_t>& out, const Window& window) {
  const auto axis = [&](size_t i) { return pooling::axis_of(in[2 + i], out[2 + i], window, i); };
  return {axis(0), axis(1), axis(2)};
}

}  // namespace

Tensor average(const char* op, const Tensor& x, const Axes& axes, const Divisor& divisor) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return pool<float>(op, x, axes, divisor);
    case ScalarType::BFloat16:
      return pool<bfloat16>(op, x, axes, divisor);
    case ScalarType::Double:
      return pool<double>(op, x, axes, divisor);
    default:
      VOLNET_CHECK(false, op, ": x must be float32, float64 or bfloat16");
  }
}

Tensor average_backward(const char* op, const Tensor& grad, const std::vector<int64_t>& input_size,
                        const Axes& axes, const Divisor& divisor, bool channels_last) {
  const Layout5 layout = channels_last ? Layout5::channels_last : Layout5::plain;
  switch (grad.scalar_type()) {
    case ScalarType::Float:
      return pool_backward<float>(op, grad, input_size, axes, divisor, layout);
    case ScalarType::BFloat16:
      return pool_backward<bfloat16>(op, grad, input_size, axes, divisor, layout);
    case ScalarType::Double:
      return pool_backward<double>(op, grad, input_size, axes, divisor, layout);
    default:
      VOLNET_CHECK(false, op, ": the gradient must be float32, float64 or bfloat16");
  }
}

namespace {

constexpr const char* op = "avg_pool3d";

Tensor forward(const Tensor& x, std::vector<int64_t> kernel_size, std::vector<int64_t> stride,
               std::vector<int64_t> padding, bool ceil_mode, bool count_include_pad,
               std::optional<int64_t> divisor_override) {
  const Window window{kernel_size, stride, padding, {1, 1, 1}};
  pooling::check(op, x, window);
  VOLNET_CHECK(divisor_override != 0, op, ": divisor_override must not be 0");
  const std::vector<int64_t> in = sizes_of(x);
  std::vector<int64_t> out = in;
  for (size_t i = 0; i < 3; ++i) {
    out[2 + i] = pooling::output_size(in[2 + i], window, i, ceil_mode);
    VOLNET_CHECK(out[2 + i] > 0 && kernel_size[i] <= in[2 + i], op, ": kernel_size ", shape_text(kernel_size),
                 " is larger than the input of ", shape_text(in));
  }
  return average(op, x, axes_of(in, out, window), {count_include_pad, divisor_override.value_or(0)});
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
  return average_backward(op, grad, input_size, axes_of(input_size, sizes_of(grad), window),
                          {count_include_pad, divisor_override.value_or(0)}, channels_last);
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

// torch.ops.volnet.max_pool3d, max_pool3d_with_indices and _max_pool3d_backward, and the way of other max
// pooling to their kernels.
#include "ops/max_pool3d.h"

#include "kernels/max_pool3d/max_pool3d.h"

namespace volnet {
namespace {

using max_pool3d::BackwardParams;
using max_pool3d::Params;
using max_pool3d::Slab;
using pooling::Axes;
using pooling::Axis;
using pooling::Window;

template <class T>
struct Kernels;
template <>
struct Kernels<float> {
  static constexpr auto& plain = max_pool3d::forward_plain_f32;
  static constexpr auto& channels_last = max_pool3d::forward_channels_last_f32;
  static constexpr auto& gather = max_pool3d::backward_gather_f32;
  static constexpr auto& scatter = max_pool3d::backward_scatter_f32;
  static constexpr auto& plain_any_size = max_pool3d::scalar::forward_plain_f32;
  static constexpr auto& channels_last_any_size = max_pool3d::scalar::forward_channels_last_f32;
  static constexpr auto& join = max_pool3d::scalar::join_f32;
};
template <>
struct Kernels<bfloat16> {
  static constexpr auto& plain = max_pool3d::forward_plain_bf16;
  static constexpr auto& channels_last = max_pool3d::forward_channels_last_bf16;
  static constexpr auto& gather = max_pool3d::backward_gather_bf16;
  static constexpr auto& scatter = max_pool3d::backward_scatter_bf16;
  static constexpr auto& plain_any_size = max_pool3d::scalar::forward_plain_bf16;
  static constexpr auto& channels_last_any_size = max_pool3d::scalar::forward_channels_last_bf16;
  static constexpr auto& join = max_pool3d::scalar::join_bf16;
};
template <>
struct Kernels<double> {
  static constexpr auto& plain = max_pool3d::forward_plain_f64;
  static constexpr auto& channels_last = max_pool3d::forward_channels_last_f64;
  static constexpr auto& gather = max_pool3d::backward_gather_f64;
  static constexpr auto& scatter = max_pool3d::backward_scatter_f64;
  static constexpr auto& plain_any_size = max_pool3d::scalar::forward_plain_f64;
  static constexpr auto& channels_last_any_size = max_pool3d::scalar::forward_channels_last_f64;
  static constexpr auto& join = max_pool3d::scalar::join_f64;
};

// Elements that a piece of work reads, about: small enough for the pieces of one layer to keep many cores
// busy.
constexpr int64_t piece_elements = int64_t{1} << 16;
constexpr int64_t slab_elements = int64_t{1} << 17;
// Windows that may share a voxel before looking at all of them costs more than adding to scattered places.
constexpr int64_t most_gathered = 32;

int64_t reads(const Axis& axis) { return std::min(axis.kernel, axis.in); }

// Elements that a row of the result reads.
int64_t row_reads(const Params& p, bool plain) {
  return reads(p.d) * reads(p.h) * (plain ? p.w.in : reads(p.w) * p.w.out * p.channels);
}

// Makes every row of the result. row_work: elements that a row reads.
template <class T>
void run(const char* op, const Params& params, bool plain, int64_t row_work) {
  const bool vector = max_pool3d::fits_vector(params);
  const max_pool3d::Forward kernel =
      plain ? (vector ? Kernels<T>::plain.best() : Kernels<T>::plain_any_size)
            : (vector ? Kernels<T>::channels_last.best() : Kernels<T>::channels_last_any_size);
  const int64_t rows = params.batch * (plain ? params.channels : 1) * params.d.out * params.h.out;
  const int64_t rows_per_piece = std::max<int64_t>(piece_elements / row_work, 1);
  const int64_t pieces = (rows + rows_per_piece - 1) / rows_per_piece;
  const int64_t scratch_bytes = plain && vector ? max_pool3d::scratch_bytes(params) : 0;
  const memory::Scratch scratch(worker_count(pieces) * scratch_bytes, op);
  for_each_piece(pieces, [&](int64_t piece, int64_t worker) {
    const int64_t begin = piece * rows_per_piece;
    kernel(params, begin, std::min(begin + rows_per_piece, rows),
           scratch.as<char>() + worker * scratch_bytes);
  });
}

template <class T>
void pool_in_parts(const char* op, const Params& params, bool plain, const pooling::Parts& parts) {
  const auto d = windows_in_parts(params.d, parts.d), h = windows_in_parts(params.h, parts.h);
  const int64_t row = params.w.out * (plain ? 1 : params.channels);
  const int64_t rows = params.batch * (plain ? params.channels : 1) * params.d.out * params.h.out;
  const int64_t elements = rows * parts.count() * row;
  const bool with_indices = params.indices != nullptr;
  const memory::Scratch maxima(elements * static_cast<int64_t>(sizeof(T)), op);
  const memory::Scratch indices(with_indices ? elements * static_cast<int64_t>(sizeof(int64_t)) : 0, op);
  Params part = params;
  part.y = maxima.as<T>();
  part.indices = with_indices ? indices.as<int64_t>() : nullptr;
  part.d = axis_in_parts(params.d, d);
  part.h = axis_in_parts(params.h, h);
  run<T>(op, part, plain, std::max<int64_t>(row_reads(params, plain) / parts.count(), 1));
  const int64_t rows_per_piece = std::max<int64_t>(piece_elements / (parts.count() * row), 1);
  for_each_piece((rows + rows_per_piece - 1) / rows_per_piece, [&](int64_t piece, int64_t) {
    const int64_t begin = piece * rows_per_piece;
    Kernels<T>::join(params, parts, part.y, part.indices, row, begin, std::min(begin + rows_per_piece, rows));
  });
}

template <class T>
std::tuple<Tensor, std::optional<Tensor>> pool(const char* op, const Tensor& input, const Axes& axes,
                                               bool with_indices) {
  const Layout5 layout = layout_of(input);
  const Tensor x = to_layout(input, layout, op);
  std::vector<int64_t> sizes = sizes_of(x);
  for (size_t i = 0; i < 3; ++i) sizes[2 + i] = axes[i].out;
  Tensor y = empty_volume<T>(sizes, layout, op);
  std::optional<Tensor> indices;
  if (with_indices) indices = empty_volume<int64_t>(sizes, layout, op);
  if (numel(sizes) == 0) return {y, indices};

  const Params params{x.const_data_ptr(),
                      y.mutable_data_ptr(),
                      with_indices ? mutable_data<int64_t>(*indices) : nullptr,
                      sizes[0],
                      sizes[1],
                      axes[0],
                      axes[1],
                      axes[2]};
  // With one channel both layouts are the same memory, and the plain kernel has longer vectors.
  const bool plain = layout == Layout5::plain || params.channels == 1;
  const int64_t work = row_reads(params, plain);
  const auto parts = parts_for(params.d, params.h, work, piece_elements);
  if (parts.count() > 1) {
    pool_in_parts<T>(op, params, plain, parts);
  } else {
    run<T>(op, params, plain, work);
  }
  return {y, indices};
}

void gather(const BackwardParams& params, int64_t images, max_pool3d::Gather kernel) {
  const int64_t rows = images * params.d.in * params.h.in;
  const int64_t rows_per_piece = std::max<int64_t>(piece_elements / (params.w.in * params.channels), 1);
  for_each_piece((rows + rows_per_piece - 1) / rows_per_piece, [&](int64_t piece, int64_t) {
    const int64_t begin = piece * rows_per_piece;
    kernel(params, begin, std::min(begin + rows_per_piece, rows));
  });
}

// line: elements of a cache line. own_sums: whether a slab needs its sums apart from dx.
void scatter(const char* op, const BackwardParams& params, int64_t planes, int64_t line, bool own_sums,
             max_pool3d::Scatter kernel) {
  // Slabs end where windows do, if those do not overlap; if they do, outputs are walked again for every slab
  // that they reach into, so a slab is a few windows deep.
  const Axis& d = params.d;
  const int64_t slice = params.h.in * params.w.in, channels = params.channels;
  const int64_t overlap = (pooling::most_outputs(d) - 1) * 4;
  const int64_t windows =
      std::max({slab_elements / (slice * std::min(line, channels) * d.stride), overlap, int64_t{1}});
  const int64_t depth = windows * d.stride, phase = d.padding % depth;
  const int64_t block =
      std::min(channels, std::max<int64_t>(slab_elements / (slice * depth) / line, 1) * line);
  const int64_t blocks = (channels + block - 1) / block;
  const int64_t slabs = (d.in + phase + depth - 1) / depth;
  const int64_t pieces = planes * slabs * blocks;
  const int64_t floats = own_sums ? std::min(depth, d.in) * slice * block : 0;
  const memory::Scratch scratch(worker_count(pieces) * floats * static_cast<int64_t>(sizeof(float)), op);
  for_each_piece(pieces, [&](int64_t piece, int64_t worker) {
    const int64_t c = piece % blocks * block, start = piece / blocks % slabs * depth - phase;
    const Slab slab{piece / (blocks * slabs), std::max<int64_t>(start, 0), std::min(start + depth, d.in), c,
                    std::min(c + block, channels)};
    kernel(params, slab, own_sums ? scratch.as<float>() + worker * floats : nullptr);
  });
}

template <class T>
Tensor pool_backward(const char* op, const Tensor& grad, const Tensor& places,
                     const std::vector<int64_t>& input_size, const Axes& axes, Layout5 layout) {
  const Tensor dy = to_layout(grad, layout, op), indices = to_layout(places, layout, op);
  Tensor dx = empty_volume<T>(input_size, layout, op);
  if (numel(input_size) == 0) return dx;
  const int64_t planes = layout == Layout5::plain ? input_size[0] * input_size[1] : input_size[0];
  const int64_t channels = layout == Layout5::plain ? 1 : input_size[1];
  const BackwardParams params{dy.const_data_ptr(),
                              data<int64_t>(indices),
                              dx.mutable_data_ptr(),
                              channels,
                              axes[0],
                              axes[1],
                              axes[2]};

  const int64_t sharing =
      pooling::most_outputs(params.d) * pooling::most_outputs(params.h) * pooling::most_outputs(params.w);
  if (channels > 1 && sharing <= most_gathered) {
    gather(params, planes, Kernels<T>::gather.best());
  } else {
    const bool own_sums = std::is_same_v<T, bfloat16> && sharing > 1;
    scatter(op, params, planes, 64 / static_cast<int64_t>(sizeof(T)), own_sums, Kernels<T>::scatter.best());
  }
  return dx;
}

}  // namespace

std::tuple<Tensor, std::optional<Tensor>> maximum(const char* op, const Tensor& x, const Axes& axes,
                                                  bool with_indices) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return pool<float>(op, x, axes, with_indices);
    case ScalarType::BFloat16:
      return pool<bfloat16>(op, x, axes, with_indices);
    case ScalarType::Double:
      return pool<double>(op, x, axes, with_indices);
    default:
      VOLNET_CHECK(false, op, ": x must be float32, float64 or bfloat16");
  }
}

Tensor maximum_backward(const char* op, const Tensor& grad, const Tensor& indices,
                        const std::vector<int64_t>& input_size, const Axes& axes, bool channels_last) {
  const Layout5 layout = channels_last ? Layout5::channels_last : Layout5::plain;
  switch (grad.scalar_type()) {
    case ScalarType::Float:
      return pool_backward<float>(op, grad, indices, input_size, axes, layout);
    case ScalarType::BFloat16:
      return pool_backward<bfloat16>(op, grad, indices, input_size, axes, layout);
    case ScalarType::Double:
      return pool_backward<double>(op, grad, indices, input_size, axes, layout);
    default:
      VOLNET_CHECK(false, op, ": the gradient must be float32, float64 or bfloat16");
  }
}

void check_indices(const char* op, const Tensor& grad, const Tensor& indices,
                   const std::vector<int64_t>& input_size) {
  VOLNET_CHECK(input_size.size() == 5 && sizes_of(indices) == sizes_of(grad) &&
                   indices.scalar_type() == ScalarType::Long && input_size[0] == grad.size(0) &&
                   input_size[1] == grad.size(1),
               op, ": gradient ", shape_text(sizes_of(grad)), " and indices ", shape_text(sizes_of(indices)),
               " do not belong to an input of ", shape_text(input_size));
}

namespace {

constexpr const char* op = "max_pool3d";

std::tuple<Tensor, std::optional<Tensor>> pool_windows(const Tensor& x, const Window& window, bool ceil_mode,
                                                       bool with_indices) {
  pooling::check(op, x, window);
  const auto axis = [&](size_t i) {
    const int64_t in = x.size(static_cast<int64_t>(2 + i));
    const int64_t out = pooling::output_size(in, window, i, ceil_mode);
    VOLNET_CHECK(out > 0, op, ": the output would be empty for an input of ", shape_text(sizes_of(x)));
    return pooling::axis_of(in, out, window, i);
  };
  return maximum(op, x, {axis(0), axis(1), axis(2)}, with_indices);
}

Tensor forward(const Tensor& x, std::vector<int64_t> kernel_size, std::vector<int64_t> stride,
               std::vector<int64_t> padding, std::vector<int64_t> dilation, bool ceil_mode) {
  return std::get<0>(pool_windows(x, {kernel_size, stride, padding, dilation}, ceil_mode, false));
}

std::tuple<Tensor, Tensor> forward_with_indices(const Tensor& x, std::vector<int64_t> kernel_size,
                                                std::vector<int64_t> stride, std::vector<int64_t> padding,
                                                std::vector<int64_t> dilation, bool ceil_mode) {
  auto [y, indices] = pool_windows(x, {kernel_size, stride, padding, dilation}, ceil_mode, true);
  return {y, *indices};
}

Tensor backward(const Tensor& grad, const Tensor& indices, std::vector<int64_t> input_size,
                std::vector<int64_t> kernel_size, std::vector<int64_t> stride, std::vector<int64_t> padding,
                std::vector<int64_t> dilation, bool channels_last) {
  const Window window{kernel_size, stride, padding, dilation};
  pooling::check(op, grad, window);
  check_indices(op, grad, indices, input_size);
  const auto axis = [&](size_t i) {
    return pooling::axis_of(input_size[2 + i], grad.size(static_cast<int64_t>(2 + i)), window, i);
  };
  return maximum_backward(op, grad, indices, input_size, {axis(0), axis(1), axis(2)}, channels_last);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) {
  m.def(
      "max_pool3d(Tensor x, int[] kernel_size, int[] stride, int[] padding, int[] dilation, bool ceil_mode) "
      "-> Tensor");
  m.def(
      "max_pool3d_with_indices(Tensor x, int[] kernel_size, int[] stride, int[] padding, int[] dilation, "
      "bool ceil_mode) -> (Tensor, Tensor)");
  m.def(
      "_max_pool3d_backward(Tensor grad, Tensor indices, int[] input_size, int[] kernel_size, int[] stride, "
      "int[] padding, int[] dilation, bool channels_last) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) {
  m.impl("max_pool3d", TORCH_BOX(&forward));
  m.impl("max_pool3d_with_indices", TORCH_BOX(&forward_with_indices));
  m.impl("_max_pool3d_backward", TORCH_BOX(&backward));
}

}  // namespace volnet

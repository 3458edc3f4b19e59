// torch.ops.volnet.max_pool3d, max_pool3d_with_indices and _max_pool3d_backward, and the way of other max
// pooling to their kernels.
#include "ops/max_pool3d.h"

#include "kernels/max_pool3d/max_pool3d.h"

#include <cstring>
#include <limits>

#include "ops/dtypes.h"

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
  static constexpr auto& sparse = max_pool3d::backward_sparse_f32;
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
  static constexpr auto& sparse = max_pool3d::backward_sparse_bf16;
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
  static constexpr auto& sparse = max_pool3d::backward_sparse_f64;
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
// The same of a plain volume's taps, whose comparisons are cheaper: vectors along the row.
constexpr int64_t most_taps = 64;
// Voxels for each output from which on it pays to look at the outputs alone.
constexpr int64_t sparse_from = 64;
// Larger gradients, in bytes, have mostly left the caches by the time they are read.
constexpr int64_t stream_from = int64_t{32} << 20;

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
  const int64_t index_bytes = with_indices ? (params.narrow ? sizeof(int32_t) : sizeof(int64_t)) : 0;
  const memory::Scratch indices(elements * index_bytes, op);
  Params part = params;
  part.y = maxima.as<T>();
  part.indices = with_indices ? indices.as<void>() : nullptr;
  part.d = axis_in_parts(params.d, d);
  part.h = axis_in_parts(params.h, h);
  run<T>(op, part, plain, std::max<int64_t>(row_reads(params, plain) / parts.count(), 1));
  const int64_t rows_per_piece = std::max<int64_t>(piece_elements / (parts.count() * row), 1);
  for_each_piece((rows + rows_per_piece - 1) / rows_per_piece, [&](int64_t piece, int64_t) {
    const int64_t begin = piece * rows_per_piece;
    Kernels<T>::join(params, parts, part.y, part.indices, row, begin, std::min(begin + rows_per_piece, rows));
  });
}

// Whether the indices of the maxima of x are int32.
bool are_narrow(Indices wanted, const Tensor& x) {
  return wanted == Indices::narrow &&
         x.size(2) * x.size(3) * x.size(4) <= std::numeric_limits<int32_t>::max();
}

std::optional<Tensor> empty_indices(const char* op, const std::vector<int64_t>& sizes, Layout5 layout,
                                    Indices wanted, bool narrow) {
  if (wanted == Indices::none) return std::nullopt;
  return empty_strided(
      sizes, layout == Layout5::plain ? contiguous_strides(sizes) : channels_last_strides(sizes),
      narrow ? ScalarType::Int : ScalarType::Long, narrow ? sizeof(int32_t) : sizeof(int64_t), op);
}

template <class T>
std::tuple<Tensor, std::optional<Tensor>> pool(const char* op, const Tensor& input, const Axes& axes,
                                               Indices wanted) {
  const Layout5 layout = layout_of(input);
  const Tensor x = to_layout(input, layout, op);
  std::vector<int64_t> sizes = sizes_of(x);
  for (size_t i = 0; i < 3; ++i) sizes[2 + i] = axes[i].out;
  Tensor y = empty_volume<T>(sizes, layout, op);
  const bool narrow = are_narrow(wanted, x);
  const std::optional<Tensor> indices = empty_indices(op, sizes, layout, wanted, narrow);
  if (numel(sizes) == 0) return {y, indices};

  const Params params{x.const_data_ptr(),
                      y.mutable_data_ptr(),
                      indices ? indices->mutable_data_ptr() : nullptr,
                      sizes[0],
                      sizes[1],
                      axes[0],
                      axes[1],
                      axes[2],
                      narrow};
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

// In plain layout, whose rows have one channel: others go there and back.
template <class T>
std::tuple<Tensor, std::optional<Tensor>> pool_planes(const char* op, const Tensor& input,
                                                      const std::vector<int64_t>& output_size,
                                                      const std::function<Axes(int64_t)>& axes_of,
                                                      Indices wanted) {
  const Layout5 layout = layout_of(input);
  const Tensor x = to_layout(input, Layout5::plain, op);
  std::vector<int64_t> sizes = sizes_of(x);
  for (size_t i = 0; i < 3; ++i) sizes[2 + i] = output_size[i];
  const bool narrow = are_narrow(wanted, x);
  // One channel or one voxel lies the same both ways, and then the strides say what the caller means.
  const bool same_memory = sizes[1] == 1 || sizes[2] * sizes[3] * sizes[4] == 1;
  const Layout5 written = same_memory ? layout : Layout5::plain;
  const Tensor y = empty_volume<T>(sizes, written, op);
  const std::optional<Tensor> indices = empty_indices(op, sizes, written, wanted, narrow);
  if (numel(sizes) > 0) {
    const int64_t in = x.size(2) * x.size(3) * x.size(4), out = sizes[2] * sizes[3] * sizes[4];
    const auto plane_params = [&](int64_t plane) {
      const Axes axes = axes_of(plane);
      const int64_t index_bytes = narrow ? sizeof(int32_t) : sizeof(int64_t);
      char* places = indices ? static_cast<char*>(indices->mutable_data_ptr()) : nullptr;
      return Params{data<T>(x) + plane * in,
                    mutable_data<T>(y) + plane * out,
                    places == nullptr ? nullptr : places + plane * out * index_bytes,
                    1,
                    1,
                    axes[0],
                    axes[1],
                    axes[2],
                    narrow};
    };
    const Params first = plane_params(0);
    const bool vector = max_pool3d::fits_vector(first);
    const max_pool3d::Forward kernel = vector ? Kernels<T>::plain.best() : Kernels<T>::plain_any_size;
    const int64_t rows = sizes[2] * sizes[3];
    const int64_t rows_per_piece = std::max<int64_t>(piece_elements / row_reads(first, true), 1);
    const int64_t parts = (rows + rows_per_piece - 1) / rows_per_piece, pieces = sizes[0] * sizes[1] * parts;
    const int64_t scratch_bytes = vector ? max_pool3d::scratch_bytes(first) : 0;
    const memory::Scratch scratch(worker_count(pieces) * scratch_bytes, op);
    for_each_piece(pieces, [&](int64_t piece, int64_t worker) {
      const int64_t begin = piece % parts * rows_per_piece;
      kernel(plane_params(piece / parts), begin, std::min(begin + rows_per_piece, rows),
             scratch.as<char>() + worker * scratch_bytes);
    });
  }
  return {to_layout(y, layout, op), indices ? std::optional(to_layout(*indices, layout, op)) : std::nullopt};
}

void gather(const char* op, const BackwardParams& params, int64_t planes, max_pool3d::Gather kernel) {
  const int64_t rows = planes * params.d.in * params.h.in;
  const int64_t rows_per_piece = std::max<int64_t>(piece_elements / (params.w.in * params.channels), 1);
  const int64_t pieces = (rows + rows_per_piece - 1) / rows_per_piece;
  const int64_t floats = pooling::round_up(max_pool3d::gather_scratch(params));
  const memory::Scratch scratch(worker_count(pieces) * floats * static_cast<int64_t>(sizeof(float)), op);
  for_each_piece(pieces, [&](int64_t piece, int64_t worker) {
    const int64_t begin = piece * rows_per_piece;
    kernel(params, begin, std::min(begin + rows_per_piece, rows), scratch.as<float>() + worker * floats);
  });
}

// elements: of dx, each of element_size bytes.
void sparse(const BackwardParams& params, int64_t planes, int64_t elements, int64_t element_size,
            max_pool3d::Sparse kernel) {
  constexpr int64_t piece_bytes = int64_t{256} << 10, voxels_per_piece = 256;
  char* dx = static_cast<char*>(params.dx);
  const int64_t bytes = elements * element_size;
  for_each_piece((bytes + piece_bytes - 1) / piece_bytes, [&](int64_t piece, int64_t) {
    const int64_t begin = piece * piece_bytes;
    std::memset(dx + begin, 0, static_cast<size_t>(std::min(piece_bytes, bytes - begin)));
  });
  const int64_t voxels = planes * params.d.out * params.h.out * params.w.out;
  for_each_piece((voxels + voxels_per_piece - 1) / voxels_per_piece, [&](int64_t piece, int64_t) {
    const int64_t begin = piece * voxels_per_piece;
    kernel(params, begin, std::min(begin + voxels_per_piece, voxels));
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
  const int64_t elements = numel(input_size);
  const pooling::TouchingAxis d(axes[0]), h(axes[1]), w(axes[2]);
  const BackwardParams params{dy.const_data_ptr(),
                              indices.const_data_ptr(),
                              dx.mutable_data_ptr(),
                              channels,
                              d,
                              h,
                              w,
                              indices.scalar_type() == ScalarType::Int,
                              elements * static_cast<int64_t>(sizeof(T)) >= stream_from};

  const int64_t sharing =
      pooling::most_outputs(params.d) * pooling::most_outputs(params.h) * pooling::most_outputs(params.w);
  const int64_t taps = params.d.kernel * params.h.kernel * params.w.kernel;
  constexpr int64_t longest_row = int64_t{1} << 20;
  if (elements / sparse_from >= dy.numel()) {
    sparse(params, planes, elements, sizeof(T), Kernels<T>::sparse.best());
  } else if (channels > 1 ? sharing <= most_gathered && params.w.in < longest_row
                          : taps <= most_taps && params.w.in < longest_row && !std::is_same_v<T, double>) {
    gather(op, params, planes, Kernels<T>::gather.best());
  } else {
    const bool own_sums = std::is_same_v<T, bfloat16> && sharing > 1;
    scatter(op, params, planes, 64 / static_cast<int64_t>(sizeof(T)), own_sums, Kernels<T>::scatter.best());
  }
  return dx;
}

}  // namespace

std::tuple<Tensor, std::optional<Tensor>> maximum(const char* op, const Tensor& x, const Axes& axes,
                                                  Indices indices) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return pool<float>(op, x, axes, indices);
    case ScalarType::BFloat16:
      return pool<bfloat16>(op, x, axes, indices);
    case ScalarType::Double:
      return pool<double>(op, x, axes, indices);
    default:
      VOLNET_CHECK(false, op, ": x must be float32, float64 or bfloat16");
  }
}

std::tuple<Tensor, std::optional<Tensor>> maximum_of_planes(const char* op, const Tensor& x,
                                                            const std::vector<int64_t>& output_size,
                                                            const std::function<Axes(int64_t)>& axes_of,
                                                            Indices indices) {
  return with_floating_type(x.scalar_type(), op, "x", [&](auto type) {
    return pool_planes<decltype(type)>(op, x, output_size, axes_of, indices);
  });
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
                   (indices.scalar_type() == ScalarType::Long || indices.scalar_type() == ScalarType::Int) &&
                   input_size[0] == grad.size(0) && input_size[1] == grad.size(1),
               op, ": gradient ", shape_text(sizes_of(grad)), " and indices ", shape_text(sizes_of(indices)),
               " do not belong to an input of ", shape_text(input_size));
}

namespace {

constexpr const char* op = "max_pool3d";

std::tuple<Tensor, std::optional<Tensor>> pool_windows(const Tensor& x, const Window& window, bool ceil_mode,
                                                       Indices indices) {
  pooling::check(op, x, window);
  const auto axis = [&](size_t i) {
    const int64_t in = x.size(static_cast<int64_t>(2 + i));
    const int64_t out = pooling::output_size(in, window, i, ceil_mode);
    VOLNET_CHECK(out > 0, op, ": the output would be empty for an input of ", shape_text(sizes_of(x)));
    return pooling::axis_of(in, out, window, i);
  };
  return maximum(op, x, {axis(0), axis(1), axis(2)}, indices);
}

Tensor forward(const Tensor& x, std::vector<int64_t> kernel_size, std::vector<int64_t> stride,
               std::vector<int64_t> padding, std::vector<int64_t> dilation, bool ceil_mode) {
  return std::get<0>(pool_windows(x, {kernel_size, stride, padding, dilation}, ceil_mode, Indices::none));
}

std::tuple<Tensor, Tensor> forward_with_indices(const Tensor& x, std::vector<int64_t> kernel_size,
                                                std::vector<int64_t> stride, std::vector<int64_t> padding,
                                                std::vector<int64_t> dilation, bool ceil_mode, bool narrow) {
  auto [y, indices] = pool_windows(x, {kernel_size, stride, padding, dilation}, ceil_mode,
                                   narrow ? Indices::narrow : Indices::wide);
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
      "bool ceil_mode, bool narrow=False) -> (Tensor, Tensor)");
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

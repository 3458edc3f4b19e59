// torch.ops.volnet.max_pool3d, max_pool3d_with_indices and _max_pool3d_backward.
#include "kernels/max_pool3d/max_pool3d.h"

#include <limits>

#include "ops/pooling.h"
#include "ops/tensors.h"

namespace volnet {
namespace {

using max_pool3d::BackwardParams;
using max_pool3d::Params;
using max_pool3d::Slab;
using pooling::Axis;
using pooling::Window;

constexpr const char* op = "max_pool3d";

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
};
template <>
struct Kernels<bfloat16> {
  static constexpr auto& plain = max_pool3d::forward_plain_bf16;
  static constexpr auto& channels_last = max_pool3d::forward_channels_last_bf16;
  static constexpr auto& gather = max_pool3d::backward_gather_bf16;
  static constexpr auto& scatter = max_pool3d::backward_scatter_bf16;
  static constexpr auto& plain_any_size = max_pool3d::scalar::forward_plain_bf16;
  static constexpr auto& channels_last_any_size = max_pool3d::scalar::forward_channels_last_bf16;
};
template <>
struct Kernels<double> {
  static constexpr auto& plain = max_pool3d::forward_plain_f64;
  static constexpr auto& channels_last = max_pool3d::forward_channels_last_f64;
  static constexpr auto& gather = max_pool3d::backward_gather_f64;
  static constexpr auto& scatter = max_pool3d::backward_scatter_f64;
  static constexpr auto& plain_any_size = max_pool3d::scalar::forward_plain_f64;
  static constexpr auto& channels_last_any_size = max_pool3d::scalar::forward_channels_last_f64;
};

// Elements that a piece of work reads, about: small enough for the pieces of one layer to keep many cores
// busy.
constexpr int64_t piece_elements = int64_t{1} << 16;
constexpr int64_t slab_elements = int64_t{1} << 17;
// Windows that may share a voxel before looking at all of them costs more than adding to scattered places.
constexpr int64_t most_gathered = 32;

template <class T>
std::tuple<Tensor, std::optional<Tensor>> pool(const Tensor& input, const Window& window, bool ceil_mode,
                                               bool with_indices) {
  const Layout5 layout = layout_of(input);
  const Tensor x = to_layout(input, layout, op);
  std::vector<int64_t> sizes = sizes_of(x);
  Axis axes[3];
  for (size_t i = 0; i < 3; ++i) {
    const int64_t in = sizes[2 + i], out = pooling::output_size(in, window, i, ceil_mode);
    VOLNET_CHECK(out > 0, op, ": the output would be empty for an input of ", shape_text(sizes_of(x)));
    axes[i] = pooling::axis_of(in, out, window, i);
    sizes[2 + i] = out;
  }
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
  const bool vector = max_pool3d::fits_vector(params);
  const max_pool3d::Forward kernel =
      plain ? (vector ? Kernels<T>::plain.best() : Kernels<T>::plain_any_size)
            : (vector ? Kernels<T>::channels_last.best() : Kernels<T>::channels_last_any_size);

  const auto reads = [](const Axis& a) { return std::min(a.kernel, a.in); };
  const int64_t row_reads = reads(params.d) * reads(params.h) *
                            (plain ? params.w.in : reads(params.w) * params.w.out * params.channels);
  const int64_t rows = params.batch * (plain ? params.channels : 1) * params.d.out * params.h.out;
  const int64_t rows_per_piece = std::max<int64_t>(piece_elements / row_reads, 1);
  const int64_t pieces = (rows + rows_per_piece - 1) / rows_per_piece;
  const int64_t scratch_bytes = plain && vector ? max_pool3d::scratch_bytes(params) : 0;
  const memory::Scratch scratch(worker_count(pieces) * scratch_bytes, op);
  for_each_piece(pieces, [&](int64_t piece, int64_t worker) {
    const int64_t begin = piece * rows_per_piece;
    kernel(params, begin, std::min(begin + rows_per_piece, rows),
           scratch.as<char>() + worker * scratch_bytes);
  });
  return {y, indices};
}

std::tuple<Tensor, std::optional<Tensor>> pool_any(const Tensor& x, const Window& window, bool ceil_mode,
                                                   bool with_indices) {
  pooling::check(op, x, window);
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return pool<float>(x, window, ceil_mode, with_indices);
    case ScalarType::BFloat16:
      return pool<bfloat16>(x, window, ceil_mode, with_indices);
    case ScalarType::Double:
      return pool<double>(x, window, ceil_mode, with_indices);
    default:
      VOLNET_CHECK(false, op, ": x must be float32, float64 or bfloat16");
  }
}

Tensor forward(const Tensor& x, std::vector<int64_t> kernel_size, std::vector<int64_t> stride,
               std::vector<int64_t> padding, std::vector<int64_t> dilation, bool ceil_mode) {
  return std::get<0>(pool_any(x, {kernel_size, stride, padding, dilation}, ceil_mode, false));
}

std::tuple<Tensor, Tensor> forward_with_indices(const Tensor& x, std::vector<int64_t> kernel_size,
                                                std::vector<int64_t> stride, std::vector<int64_t> padding,
                                                std::vector<int64_t> dilation, bool ceil_mode) {
  auto [y, indices] = pool_any(x, {kernel_size, stride, padding, dilation}, ceil_mode, true);
  return {y, *indices};
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
void scatter(const BackwardParams& params, int64_t planes, int64_t line, bool own_sums,
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
Tensor pool_backward(const Tensor& grad, const Tensor& places, const std::vector<int64_t>& input_size,
                     const Window& window, Layout5 layout) {
  const Tensor dy = to_layout(grad, layout, op), indices = to_layout(places, layout, op);
  Tensor dx = empty_volume<T>(input_size, layout, op);
  if (numel(input_size) == 0) return dx;
  const auto axis = [&](size_t i) {
    return pooling::axis_of(input_size[2 + i], dy.size(static_cast<int64_t>(2 + i)), window, i);
  };
  const int64_t planes = layout == Layout5::plain ? input_size[0] * input_size[1] : input_size[0];
  const int64_t channels = layout == Layout5::plain ? 1 : input_size[1];
  const BackwardParams params{dy.const_data_ptr(),
                              data<int64_t>(indices),
                              dx.mutable_data_ptr(),
                              channels,
                              axis(0),
                              axis(1),
                              axis(2)};

  const int64_t sharing =
      pooling::most_outputs(params.d) * pooling::most_outputs(params.h) * pooling::most_outputs(params.w);
  if (channels > 1 && sharing <= most_gathered) {
    gather(params, planes, Kernels<T>::gather.best());
  } else {
    const bool own_sums = std::is_same_v<T, bfloat16> && sharing > 1;
    scatter(params, planes, 64 / static_cast<int64_t>(sizeof(T)), own_sums, Kernels<T>::scatter.best());
  }
  return dx;
}

Tensor backward(const Tensor& grad, const Tensor& indices, std::vector<int64_t> input_size,
                std::vector<int64_t> kernel_size, std::vector<int64_t> stride, std::vector<int64_t> padding,
                std::vector<int64_t> dilation, bool channels_last) {
  const Window window{kernel_size, stride, padding, dilation};
  pooling::check(op, grad, window);
  VOLNET_CHECK(input_size.size() == 5 && sizes_of(indices) == sizes_of(grad) &&
                   indices.scalar_type() == ScalarType::Long && input_size[0] == grad.size(0) &&
                   input_size[1] == grad.size(1),
               op, ": gradient ", shape_text(sizes_of(grad)), " and indices ", shape_text(sizes_of(indices)),
               " do not belong to an input of ", shape_text(input_size));
  const Layout5 layout = channels_last ? Layout5::channels_last : Layout5::plain;
  switch (grad.scalar_type()) {
    case ScalarType::Float:
      return pool_backward<float>(grad, indices, input_size, window, layout);
    case ScalarType::BFloat16:
      return pool_backward<bfloat16>(grad, indices, input_size, window, layout);
    case ScalarType::Double:
      return pool_backward<double>(grad, indices, input_size, window, layout);
    default:
      VOLNET_CHECK(false, op, ": the gradient must be float32, float64 or bfloat16");
  }
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

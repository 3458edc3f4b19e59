// torch.ops.volnet.max_unpool3d and _max_unpool3d_backward.
#include "kernels/max_unpool3d/max_unpool3d.h"

#include <atomic>

#include "ops/dtypes.h"
#include "ops/pooling.h"
#include "ops/tensors.h"

namespace volnet {
namespace {

using max_unpool3d::Params;
using max_unpool3d::Slab;
using pooling::Axis;
using pooling::Range;

constexpr const char* op = "max_unpool3d";
// Of y, so that a slab stays in its core's cache while values are put into it.
constexpr int64_t slab_elements = int64_t{1} << 17;
constexpr int64_t piece_elements = int64_t{1} << 16;

void check(const Tensor& x, const Tensor& indices, const std::vector<int64_t>& output_size) {
  VOLNET_CHECK(x.dim() == 5, op, ": x must be [N, C, D, H, W], got ", shape_text(sizes_of(x)));
  VOLNET_CHECK(indices.scalar_type() == ScalarType::Long, op, ": indices must be int64, got ",
               type_name(indices.scalar_type()));
  VOLNET_CHECK(sizes_of(indices) == sizes_of(x), op, ": indices ", shape_text(sizes_of(indices)),
               " do not belong to an input of ", shape_text(sizes_of(x)));
  VOLNET_CHECK(output_size.size() == 3 && *std::min_element(output_size.begin(), output_size.end()) >= 0, op,
               ": output_size must be three numbers, at least 0, got ", shape_text(output_size));
}

// x and y: sizes [N, C, D, H, W].
Params params_for(const Tensor& source, const Tensor& indices, const Tensor& result,
                  const std::vector<int64_t>& x, const std::vector<int64_t>& y, Layout5 layout) {
  return {source.const_data_ptr(),
          data<int64_t>(indices),
          result.mutable_data_ptr(),
          layout == Layout5::plain ? 1 : x[1],
          x[2],
          x[3] * x[4],
          y[2],
          y[3] * y[4]};
}

// Cuts the planes of y into slabs `depth` slices deep and fills them, each from the slices of x that
// sources(d) names. Returns how many values found their place.
template <class F>
int64_t fill(const Params& p, int64_t planes, int64_t depth, int64_t line, max_unpool3d::Forward kernel,
             const F& sources) {
  const int64_t block =
      std::min(p.channels, std::max<int64_t>(slab_elements / (p.y_slice * depth) / line, 1) * line);
  const int64_t blocks = (p.channels + block - 1) / block, slabs = (p.y_slices + depth - 1) / depth;
  std::atomic<int64_t> count{0};
  for_each_piece(planes * slabs * blocks, [&](int64_t piece, int64_t) {
    const int64_t c = piece % blocks * block, begin = piece / blocks % slabs * depth;
    const Range d{begin, std::min(begin + depth, p.y_slices)};
    count += kernel(p, {piece / (blocks * slabs), d, {c, std::min(c + block, p.channels)}, sources(d)});
  });
  return count;
}

void check_indices(const Tensor& indices, const std::vector<int64_t>& output_size) {
  const auto plane = static_cast<uint64_t>(numel(output_size));
  const int64_t* index = data<int64_t>(indices);
  const int64_t* end = index + indices.numel();
  index = std::find_if(index, end, [&](int64_t i) { return static_cast<uint64_t>(i) >= plane; });
  VOLNET_CHECK(index == end, op, ": Found an invalid max index: ", *index, " (output volumes are of size ",
               output_size[0], "x", output_size[1], "x", output_size[2], ")");
}

Tensor forward(const Tensor& input, const Tensor& places, std::vector<int64_t> output_size,
               std::vector<int64_t> kernel_size, std::vector<int64_t> stride, std::vector<int64_t> padding) {
  check(input, places, output_size);
  VOLNET_CHECK(kernel_size.size() == 3 && stride.size() == 3 && padding.size() == 3 && stride[0] > 0, op,
               ": kernel_size, stride and padding must have three numbers each");
  return with_floating_type(input.scalar_type(), op, "x", [&](auto type) {
    using T = decltype(type);
    const Layout5 layout = layout_of(input);
    const Tensor x = to_layout(input, layout, op), indices = to_layout(places, layout, op);
    const std::vector<int64_t> x_sizes = sizes_of(x);
    const std::vector<int64_t> y_sizes{x_sizes[0], x_sizes[1], output_size[0], output_size[1],
                                       output_size[2]};
    Tensor y = empty_volume<T>(y_sizes, layout, op);
    if (numel(y_sizes) == 0) {
      check_indices(indices, output_size);
      return y;
    }
    const Params params = params_for(x, indices, y, x_sizes, y_sizes, layout);
    const int64_t planes = x_sizes[0] * (layout == Layout5::plain ? x_sizes[1] : 1);
    const auto kernel =
        best_for<T>(max_unpool3d::forward_f32, max_unpool3d::forward_bf16, max_unpool3d::forward_f64);
    const int64_t line = 64 / static_cast<int64_t>(sizeof(T)), least = std::min(line, params.channels);

    // Indices that max pooling gave lie in their own windows, so a slab looks only at the windows that reach
    // into it. If a value is missing then, its index came from elsewhere, and every slab looks at all of x.
    const Axis d{output_size[0], x_sizes[2], std::max<int64_t>(kernel_size[0], 1), stride[0], padding[0], 1};
    const int64_t windows = std::max<int64_t>(
        {slab_elements / (params.y_slice * least * stride[0]), (pooling::most_outputs(d) - 1) * 4, 1});
    const int64_t values = x.numel();
    if (fill(params, planes, windows * stride[0], line, kernel,
             [&](Range slab) { return outputs_touching(d, slab.begin, slab.end); }) != values) {
      check_indices(indices, output_size);
      fill(params, planes, params.y_slices, line, kernel, [&](Range) { return Range{0, params.slices}; });
    }
    return y;
  });
}

// grad: of y; indices as x.
Tensor backward(const Tensor& grad, const Tensor& places, bool channels_last) {
  VOLNET_CHECK(grad.dim() == 5 && places.dim() == 5 && places.scalar_type() == ScalarType::Long &&
                   grad.size(0) == places.size(0) && grad.size(1) == places.size(1),
               op, ": gradient ", shape_text(sizes_of(grad)), " and indices ", shape_text(sizes_of(places)),
               " do not belong together");
  return with_floating_type(grad.scalar_type(), op, "the gradient", [&](auto type) {
    using T = decltype(type);
    const Layout5 layout = channels_last ? Layout5::channels_last : Layout5::plain;
    const Tensor dy = to_layout(grad, layout, op), indices = to_layout(places, layout, op);
    const std::vector<int64_t> sizes = sizes_of(places);
    Tensor dx = empty_volume<T>(sizes, layout, op);
    if (numel(sizes) == 0) return dx;
    const Params params = params_for(dy, indices, dx, sizes, sizes_of(grad), layout);
    const auto kernel =
        best_for<T>(max_unpool3d::backward_f32, max_unpool3d::backward_bf16, max_unpool3d::backward_f64);
    const int64_t voxels = numel(sizes) / params.channels;
    const int64_t each = std::max<int64_t>(piece_elements / params.channels, 1);
    for_each_piece((voxels + each - 1) / each, [&](int64_t piece, int64_t) {
      kernel(params, piece * each, std::min((piece + 1) * each, voxels));
    });
    return dx;
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) {
  m.def(
      "max_unpool3d(Tensor x, Tensor indices, int[] output_size, int[] kernel_size, int[] stride, "
      "int[] padding) -> Tensor");
  m.def("_max_unpool3d_backward(Tensor grad, Tensor indices, bool channels_last) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) {
  m.impl("max_unpool3d", TORCH_BOX(&forward));
  m.impl("_max_unpool3d_backward", TORCH_BOX(&backward));
}

}  // namespace volnet

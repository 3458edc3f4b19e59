// torch.ops.volnet.grid_sample and its backwards, _grid_sample_backward_input and _grid_sample_backward_grid.
#include "kernels/grid_sample/grid_sample.h"

#include <limits>

#include "ops/tensors.h"

namespace volnet {
namespace {

using grid_sample::Kernel;
using grid_sample::Padding;
using grid_sample::Params;
using grid_sample::Part;
using grid_sample::ScatterKernel;

constexpr const char* op = "grid_sample";

template <class T>
struct Kernels;
template <>
struct Kernels<float> {
  static constexpr auto& forward = grid_sample::forward_f32;
  static constexpr auto& input = grid_sample::backward_input_f32;
  static constexpr auto& grid = grid_sample::backward_grid_f32;
};
template <>
struct Kernels<bfloat16> {
  static constexpr auto& forward = grid_sample::forward_bf16;
  static constexpr auto& input = grid_sample::backward_input_bf16;
  static constexpr auto& grid = grid_sample::backward_grid_bf16;
};
template <>
struct Kernels<double> {
  static constexpr auto& forward = grid_sample::forward_f64;
  static constexpr auto& input = grid_sample::backward_input_f64;
  static constexpr auto& grid = grid_sample::backward_grid_f64;
};

struct Arguments {
  bool nearest, align_corners;
  Padding padding;
};

Arguments check(const Tensor& x, const Tensor& grid, const std::string& mode, const std::string& padding_mode,
                bool align_corners) {
  VOLNET_CHECK(x.dim() == 5 && grid.dim() == 5 && grid.size(4) == 3 && x.size(0) == grid.size(0) &&
                   x.scalar_type() == grid.scalar_type(),
               op, ": x must be [N, C, D, H, W] and grid [N, OD, OH, OW, 3] of the same dtype, got ",
               shape_text(sizes_of(x)), " and ", shape_text(sizes_of(grid)));
  VOLNET_CHECK(x.size(2) > 0 && x.size(3) > 0 && x.size(4) > 0, op, ": x must not be empty in space, got ",
               shape_text(sizes_of(x)));
  for (const int64_t axis : {2, 3, 4}) {
    VOLNET_CHECK(x.size(axis) < std::numeric_limits<int32_t>::max(), op, ": an axis of x is too long, got ",
                 shape_text(sizes_of(x)));
  }
  VOLNET_CHECK(mode == "bilinear" || mode == "nearest", op, ": mode must be bilinear or nearest, got ", mode);
  VOLNET_CHECK(padding_mode == "zeros" || padding_mode == "border" || padding_mode == "reflection", op,
               ": padding_mode must be zeros, border or reflection, got ", padding_mode);
  return {mode == "nearest", align_corners,
          padding_mode == "zeros"    ? Padding::zeros
          : padding_mode == "border" ? Padding::border
                                     : Padding::reflection};
}

Params params_of(const Tensor& x, const Tensor& grid, const Arguments& arguments) {
  return {x.const_data_ptr(),
          grid.const_data_ptr(),
          nullptr,
          nullptr,
          x.size(1),
          x.size(2),
          x.size(3),
          x.size(4),
          grid.size(1) * grid.size(2) * grid.size(3),
          arguments.nearest,
          arguments.align_corners,
          arguments.padding};
}

// Runs a kernel over the points of all images.
void run(Kernel kernel, const Params& params, int64_t images) {
  constexpr int64_t piece_elements = int64_t{1} << 16, least_points = 256;
  const int64_t points = images * params.points;
  const int64_t per_piece = std::max(piece_elements / (8 * params.channels), least_points);
  for_each_piece((points + per_piece - 1) / per_piece, [&](int64_t piece, int64_t) {
    const int64_t begin = piece * per_piece;
    kernel(params, begin, std::min(begin + per_piece, points));
  });
}

// Channels last has the channels of a corner side by side: from a few channels on, to copy a plain volume
// there and the result back costs less than to pick the corners up one by one.
constexpr int64_t few_channels = 4;

template <class T>
Tensor sample(const Tensor& input, const Tensor& places, const Arguments& arguments) {
  const Layout5 layout = layout_of(input);
  const std::vector<int64_t> sizes = {input.size(0), input.size(1), places.size(1), places.size(2),
                                      places.size(3)};
  if (numel(sizes) == 0) return empty_volume<T>(sizes, layout, op);
  const Tensor grid = torch::stable::contiguous(places);
  if constexpr (std::is_same_v<T, float>) {
    if (layout == Layout5::plain && sizes[1] <= few_channels &&
        grid_sample::fits_plain(params_of(input, grid, arguments))) {
      const Tensor x = to_layout(input, layout, op);
      Tensor y = empty_volume<T>(sizes, layout, op);
      Params params = params_of(x, grid, arguments);
      params.result = y.mutable_data_ptr();
      run(grid_sample::forward_plain_f32.best(), params, sizes[0]);
      return y;
    }
  }
  const Tensor x = to_layout(input, Layout5::channels_last, op);
  Tensor y = empty_volume<T>(sizes, written_layout(sizes, layout), op);
  Params params = params_of(x, grid, arguments);
  params.result = y.mutable_data_ptr();
  run(Kernels<T>::forward.best(), params, sizes[0]);
  return to_layout(y, layout, op);
}

template <class T>
Tensor input_gradient(const Tensor& dy_any, const Tensor& places, const std::vector<int64_t>& sizes,
                      const Arguments& arguments, Layout5 layout) {
  using A = compute_t<T>;
  const Tensor grid = torch::stable::contiguous(places), dy = to_layout(dy_any, Layout5::channels_last, op);
  Tensor sums = empty_volume<A>(sizes, written_layout(sizes, layout), op);
  const int64_t channels = sizes[1], plane = sizes[3] * sizes[4] * channels, planes = sizes[0] * sizes[2];
  A* dx = mutable_data<A>(sums);
  for_each_piece(planes, [&](int64_t piece, int64_t) { std::fill_n(dx + piece * plane, plane, A{0}); });
  Params params = params_of(sums, grid, arguments);
  params.dy = dy.const_data_ptr();
  params.result = dx;
  if (params.points > 0 && numel(sizes) > 0) {
    // A part looks at all places, so there are no more than keep the workers busy; whoever adds up a voxel
    // does it in the order of the places.
    constexpr int64_t block = 64 / static_cast<int64_t>(sizeof(A)) * 2;
    const int64_t workers = worker_count(int64_t{1} << 20), wanted = workers == 1 ? 1 : workers * 2;
    const int64_t blocks = (channels + block - 1) / block;
    const int64_t slabs = std::clamp<int64_t>(wanted / (sizes[0] * blocks), 1, sizes[2]);
    const ScatterKernel kernel = Kernels<T>::input.best();
    for_each_piece(sizes[0] * blocks * slabs, [&](int64_t piece, int64_t) {
      const int64_t slab = piece % slabs, c = piece / slabs % blocks * block, image = piece / slabs / blocks;
      kernel(params, Part{image, slab * sizes[2] / slabs, (slab + 1) * sizes[2] / slabs, c,
                          std::min(c + block, channels)});
    });
  }
  if constexpr (std::is_same_v<T, A>) {
    return to_layout(sums, layout, op);
  } else {
    Tensor rounded = empty_volume<T>(sizes, written_layout(sizes, layout), op);
    T* to = mutable_data<T>(rounded);
    for_each_piece(planes, [&](int64_t piece, int64_t) {
      for (int64_t i = piece * plane; i < (piece + 1) * plane; ++i) to[i] = from_float<T>(dx[i]);
    });
    return to_layout(rounded, layout, op);
  }
}

template <class T>
Tensor grid_gradient(const Tensor& dy_any, const Tensor& input, const Tensor& places,
                     const Arguments& arguments) {
  const Tensor grid = torch::stable::contiguous(places);
  Tensor dgrid = empty_plain<T>(sizes_of(places), op);
  if (numel(sizes_of(places)) == 0) return dgrid;
  if (input.size(1) == 0 || arguments.nearest) {
    std::fill_n(mutable_data<T>(dgrid), numel(sizes_of(places)), T{});
    return dgrid;
  }
  const bool plain = std::is_same_v<T, float> && input.size(1) <= few_channels &&
                     grid_sample::fits_plain(params_of(input, grid, arguments));
  const Layout5 layout = plain ? Layout5::plain : Layout5::channels_last;
  const Tensor x = to_layout(input, layout, op), dy = to_layout(dy_any, layout, op);
  Params params = params_of(x, grid, arguments);
  params.dy = dy.const_data_ptr();
  params.result = dgrid.mutable_data_ptr();
  run(plain ? grid_sample::backward_grid_plain_f32.best() : Kernels<T>::grid.best(), params, input.size(0));
  return dgrid;
}

// Calls f<T>() for the type of x.
template <class F>
Tensor for_type(const Tensor& x, const F& f) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return f.template operator()<float>();
    case ScalarType::BFloat16:
      return f.template operator()<bfloat16>();
    case ScalarType::Double:
      return f.template operator()<double>();
    default:
      VOLNET_CHECK(false, op, ": x must be float32, float64 or bfloat16");
  }
}

Tensor forward(const Tensor& x, const Tensor& grid, std::string mode, std::string padding_mode,
               bool align_corners) {
  const Arguments arguments = check(x, grid, mode, padding_mode, align_corners);
  return for_type(x, [&]<class T>() { return sample<T>(x, grid, arguments); });
}

void check_gradient(const Tensor& dy, const Tensor& x, const Tensor& grid) {
  const std::vector<int64_t> sizes = {x.size(0), x.size(1), grid.size(1), grid.size(2), grid.size(3)};
  VOLNET_CHECK(sizes_of(dy) == sizes && dy.scalar_type() == x.scalar_type(), op, ": gradient ",
               shape_text(sizes_of(dy)), " does not belong to an output of ", shape_text(sizes));
}

Tensor backward_input(const Tensor& dy, const Tensor& x, const Tensor& grid, std::string mode,
                      std::string padding_mode, bool align_corners) {
  const Arguments arguments = check(x, grid, mode, padding_mode, align_corners);
  check_gradient(dy, x, grid);
  return for_type(
      x, [&]<class T>() { return input_gradient<T>(dy, grid, sizes_of(x), arguments, layout_of(x)); });
}

Tensor backward_grid(const Tensor& dy, const Tensor& x, const Tensor& grid, std::string mode,
                     std::string padding_mode, bool align_corners) {
  const Arguments arguments = check(x, grid, mode, padding_mode, align_corners);
  check_gradient(dy, x, grid);
  return for_type(x, [&]<class T>() { return grid_gradient<T>(dy, x, grid, arguments); });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) {
  m.def("grid_sample(Tensor x, Tensor grid, str mode, str padding_mode, bool align_corners) -> Tensor");
  m.def(
      "_grid_sample_backward_input(Tensor grad, Tensor x, Tensor grid, str mode, str padding_mode, "
      "bool align_corners) -> Tensor");
  m.def(
      "_grid_sample_backward_grid(Tensor grad, Tensor x, Tensor grid, str mode, str padding_mode, "
      "bool align_corners) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) {
  m.impl("grid_sample", TORCH_BOX(&forward));
  m.impl("_grid_sample_backward_input", TORCH_BOX(&backward_input));
  m.impl("_grid_sample_backward_grid", TORCH_BOX(&backward_grid));
}

}  // namespace volnet

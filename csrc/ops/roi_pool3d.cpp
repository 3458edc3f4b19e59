#include "kernels/roi_pool3d/roi_pool3d.h"

#include "ops/boxes.h"

namespace volnet {
namespace {

using roi_pool3d::Range;
using roi_pool3d::Region;
using roi_pool3d::Sizes;

constexpr const char* op = "roi_pool3d";

void check_output(const std::vector<int64_t>& size, double spatial_scale) {
  VOLNET_CHECK(size.size() == 3 && size[0] > 0 && size[1] > 0 && size[2] > 0, op,
               ": output_size must be three positive numbers, got ", shape_text(size));
  VOLNET_CHECK(spatial_scale > 0, op, ": spatial_scale must be positive, got ", spatial_scale);
}

Sizes make_sizes(const std::vector<int64_t>& x, Layout5 layout, const std::vector<int64_t>& bins) {
  const bool last = layout == Layout5::channels_last;
  return {last ? 1 : x[1], last ? x[1] : 1, x[2], x[3], x[4], bins[0], bins[1], bins[2]};
}

// The bins of all regions.
struct Tables {
  std::vector<Region> regions;
  int64_t most_taps = 0, longest_row = 0;

  Tables(const Regions& from, double scale, const std::vector<int64_t>& bins,
         const std::vector<int64_t>& x_sizes) {
    ranges_.resize(static_cast<size_t>(from.count() * (bins[0] + bins[1] + bins[2])));
    Range* range = ranges_.data();
    for (int64_t k = 0; k < from.count(); ++k) {
      const double* box = from.boxes.data() + 6 * k;
      const Range* of_axis[3];
      int64_t most[3] = {0, 0, 0};
      for (int a = 0; a < 3; ++a) {
        of_axis[a] = range;
        for (int64_t i = 0; i < bins[a]; ++i, ++range) {
          *range = roi_pool3d::bin_range(box[a], box[3 + a], scale, i, bins[a], x_sizes[2 + a]);
          most[a] = std::max(most[a], range->end - range->begin);
        }
      }
      const Range w_all{of_axis[2][0].begin, of_axis[2][bins[2] - 1].end};
      regions.push_back({of_axis[0], of_axis[1], of_axis[2], w_all});
      most_taps = std::max(most_taps, most[0] * most[1]);
      longest_row = std::max(longest_row, w_all.end - w_all.begin);
    }
    constexpr int64_t limit = int64_t{1} << 31;
    VOLNET_CHECK(most_taps < limit && longest_row < limit, op, ": bins of ", most_taps, " by ", longest_row,
                 " voxels are too large");
  }

 private:
  std::vector<Range> ranges_;
};

int64_t padded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

template <class T>
std::tuple<Tensor, Tensor> forward_typed(const Tensor& x, const Regions& regions,
                                         const std::vector<int64_t>& bins, double scale) {
  using A = compute_t<T>;
  const auto x_sizes = sizes_of(x);
  const Layout5 layout = layout_of(x);
  const int64_t count = regions.count();
  const std::vector<int64_t> y_sizes{count, x_sizes[1], bins[0], bins[1], bins[2]};
  Tensor y = empty_volume<T>(y_sizes, layout, op);
  Tensor argmax = empty_strided(
      y_sizes, layout == Layout5::plain ? contiguous_strides(y_sizes) : channels_last_strides(y_sizes),
      ScalarType::Long, sizeof(int64_t), op);
  if (y.numel() == 0) return {y, argmax};
  const Tensor dense = to_layout(x, layout, op);
  const Tables tables(regions, scale, bins, x_sizes);
  const Sizes sizes = make_sizes(x_sizes, layout, bins);
  const int64_t image = numel(x_sizes) / x_sizes[0], result = y.numel() / count;

  const int64_t pieces = count * bins[0];
  const int64_t row = tables.longest_row * sizes.inner + roi_pool3d::slack;
  const int64_t tap_bytes = padded(bins[1] * tables.most_taps * static_cast<int64_t>(sizeof(int64_t)));
  const int64_t count_bytes = padded(bins[1] * static_cast<int64_t>(sizeof(int64_t)));
  const int64_t value_bytes = padded(row * static_cast<int64_t>(sizeof(A)));
  const int64_t each =
      tap_bytes + count_bytes + value_bytes + padded(row * static_cast<int64_t>(sizeof(int32_t)));
  const memory::Scratch scratch(worker_count(pieces) * each, op);
  const auto run = best_for<T>(roi_pool3d::forward_f32, roi_pool3d::forward_bf16, roi_pool3d::forward_f64);
  for_each_piece(pieces, [&](int64_t piece, int64_t worker) {
    const int64_t k = piece / bins[0];
    char* mine = scratch.as<char>() + worker * each;
    const roi_pool3d::Forward<T> f{data<T>(dense) + regions.image[k] * image,
                                   mutable_data<T>(y) + k * result,
                                   mutable_data<int64_t>(argmax) + k * result,
                                   sizes,
                                   tables.regions[k],
                                   reinterpret_cast<int64_t*>(mine),
                                   reinterpret_cast<int64_t*>(mine + tap_bytes),
                                   tables.most_taps,
                                   reinterpret_cast<A*>(mine + tap_bytes + count_bytes),
                                   reinterpret_cast<int32_t*>(mine + tap_bytes + count_bytes + value_bytes)};
    run(f, piece % bins[0]);
  });
  return {y, argmax};
}

std::tuple<Tensor, Tensor> forward(const Tensor& x, const Tensor& boxes, const Tensor& images,
                                   std::vector<int64_t> output_size, double spatial_scale) {
  check_output(output_size, spatial_scale);
  VOLNET_CHECK(x.dim() == 5, op, ": x must be [N, C, D, H, W], got ", shape_text(sizes_of(x)));
  const Regions regions = read_regions(boxes, images, x.size(0), spatial_scale, op);
  return with_floating_type(x.scalar_type(), op, "x", [&](auto type) {
    return forward_typed<decltype(type)>(x, regions, output_size, spatial_scale);
  });
}

template <class T>
Tensor backward_typed(const Tensor& grad, const Tensor& argmax, const Regions& regions,
                      const std::vector<int64_t>& x_sizes, Layout5 layout, double scale) {
  using A = compute_t<T>;
  Tensor dx = empty_volume<T>(x_sizes, layout, op);
  if (dx.numel() == 0) return dx;
  const Tensor dense = to_layout(grad, layout, op), dense_argmax = to_layout(argmax, layout, op);
  const auto grad_sizes = sizes_of(grad);
  const std::vector<int64_t> bins(grad_sizes.begin() + 2, grad_sizes.end());
  const Tables tables(regions, scale, bins, x_sizes);
  const Sizes sizes = make_sizes(x_sizes, layout, bins);

  // Pieces for many threads, but not much thinner than a bin is deep, and whole cache lines of channels.
  constexpr int64_t block = 32;
  const int64_t blocks = (sizes.inner + block - 1) / block, planes = x_sizes[0] * sizes.planes * blocks;
  const int64_t thickness = std::clamp<int64_t>(planes * sizes.d / 64, 1, 16);
  const int64_t slabs = (sizes.d + thickness - 1) / thickness, pieces = planes * slabs;
  const int64_t sums_bytes = std::is_same_v<T, A>
                                 ? 0
                                 : padded(thickness * sizes.h * sizes.w * std::min(block, sizes.inner) *
                                          static_cast<int64_t>(sizeof(A)));
  const memory::Scratch scratch(worker_count(pieces) * sums_bytes, op);
  const auto run = best_for<T>(roi_pool3d::backward_f32, roi_pool3d::backward_bf16, roi_pool3d::backward_f64);
  for_each_piece(pieces, [&](int64_t piece, int64_t worker) {
    const int64_t d = piece % slabs * thickness, c = piece / slabs % blocks * block;
    const int64_t plane = piece / slabs / blocks % sizes.planes, n = piece / slabs / blocks / sizes.planes;
    const int64_t begin = regions.image_begin[n];
    const roi_pool3d::Backward<T> b{data<T>(dense),
                                    data<int64_t>(dense_argmax),
                                    mutable_data<T>(dx),
                                    sizes,
                                    tables.regions.data(),
                                    regions.image_rows.data() + begin,
                                    regions.image_begin[n + 1] - begin,
                                    reinterpret_cast<A*>(scratch.as<char>() + worker * sums_bytes)};
    run(b, {n, plane, d, std::min(d + thickness, sizes.d), c, std::min(c + block, sizes.inner)});
  });
  return dx;
}

// The gradient of an x of these sizes, in channels_last or plain layout.
Tensor backward(const Tensor& grad, const Tensor& argmax, const Tensor& boxes, const Tensor& images,
                std::vector<int64_t> x_sizes, bool channels_last, double spatial_scale) {
  const auto grad_sizes = sizes_of(grad);
  VOLNET_CHECK(grad_sizes.size() == 5 && x_sizes.size() == 5 && grad_sizes[0] == boxes.size(0) &&
                   grad_sizes[1] == x_sizes[1] && grad_sizes == sizes_of(argmax) &&
                   argmax.scalar_type() == ScalarType::Long,
               op, " backward: grad ", shape_text(grad_sizes), " does not belong to x ", shape_text(x_sizes),
               " and argmax ", shape_text(sizes_of(argmax)));
  check_output({grad_sizes.begin() + 2, grad_sizes.end()}, spatial_scale);
  const Regions regions = read_regions(boxes, images, x_sizes[0], spatial_scale, op);
  const Layout5 layout = channels_last ? Layout5::channels_last : Layout5::plain;
  return with_floating_type(grad.scalar_type(), op, "grad", [&](auto type) {
    return backward_typed<decltype(type)>(grad, argmax, regions, x_sizes, layout, spatial_scale);
  });
}

}  // namespace
}  // namespace volnet

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) {
  m.def(
      "roi_pool3d(Tensor x, Tensor boxes, Tensor images, int[] output_size, float spatial_scale) -> (Tensor, "
      "Tensor)");
  m.def(
      "_roi_pool3d_backward(Tensor grad, Tensor argmax, Tensor boxes, Tensor images, int[] x_size, "
      "bool channels_last, float spatial_scale) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) {
  m.impl("roi_pool3d", TORCH_BOX(&volnet::forward));
  m.impl("_roi_pool3d_backward", TORCH_BOX(&volnet::backward));
}

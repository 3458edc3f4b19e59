#include "kernels/roi_align3d/roi_align3d.h"

#include "ops/boxes.h"

namespace volnet {
namespace {

using roi_align3d::Axis;
using roi_align3d::Bin;
using roi_align3d::Bins;
using roi_align3d::Range;
using roi_align3d::Region;
using roi_align3d::Sizes;
using roi_align3d::Tap;

constexpr const char* op = "roi_align3d";

struct Arguments {
  std::vector<int64_t> output_size;
  double spatial_scale;
  int64_t sampling_ratio;
  bool aligned;
};

void check(const Arguments& arguments) {
  const auto& size = arguments.output_size;
  VOLNET_CHECK(size.size() == 3 && size[0] > 0 && size[1] > 0 && size[2] > 0, op,
               ": output_size must be three positive numbers, got ", shape_text(size));
  VOLNET_CHECK(arguments.spatial_scale > 0, op, ": spatial_scale must be positive, got ",
               arguments.spatial_scale);
}

Sizes make_sizes(const std::vector<int64_t>& x, Layout5 layout, const std::vector<int64_t>& bins) {
  const bool last = layout == Layout5::channels_last;
  return {last ? 1 : x[1], last ? x[1] : 1, x[2], x[3], x[4], bins[0], bins[1], bins[2]};
}

// The bins of all regions and their weights.
template <class A>
struct Tables {
  std::vector<Region<A>> regions;
  int64_t most_taps = 0, longest_row = 0;

  Tables(const Regions& from, const Arguments& arguments, const std::vector<int64_t>& extent) {
    const auto& bins = arguments.output_size;
    const int64_t of_region = bins[0] + bins[1] + bins[2], count = from.count();
    bins_.resize(static_cast<size_t>(count * of_region));
    std::vector<Axis> axes;
    axes.reserve(static_cast<size_t>(3 * count));
    int64_t total = 0;
    auto* bin = bins_.data();
    for (int64_t k = 0; k < count; ++k) {
      Bins<A> on_axis[3];
      int64_t taps = 1;
      for (int a = 0; a < 3; ++a) {
        const double* box = from.boxes.data() + 6 * k;
        axes.push_back(roi_align3d::make_axis(box[a], box[3 + a], arguments.spatial_scale,
                                              arguments.sampling_ratio, arguments.aligned, bins[a],
                                              extent[2 + a]));
        on_axis[a] = {bin, 0, 0};
        int64_t most = 0;
        for (int64_t i = 0; i < bins[a]; ++i, ++bin) {
          const Range range = roi_align3d::bin_range(axes.back(), i);
          *bin = {range.first, range.count, nullptr};
          total += range.count;
          if (range.count == 0) continue;
          const bool first = on_axis[a].begin == on_axis[a].end;
          on_axis[a].begin = first ? range.first : std::min(on_axis[a].begin, range.first);
          on_axis[a].end = std::max(on_axis[a].end, range.first + range.count);
          most = std::max(most, range.count);
        }
        for (Bin<A>* b = bin - bins[a]; b != bin; ++b) {
          if (b->count == 0) b->first = on_axis[a].begin;  // so that it points into the row as well
        }
        if (a < 2) taps *= most;
      }
      regions.push_back({on_axis[0], on_axis[1], on_axis[2]});
      most_taps = std::max(most_taps, taps);
      longest_row = std::max(longest_row, on_axis[2].end - on_axis[2].begin);
    }

    weights_.resize(static_cast<size_t>(total));
    A* weights = weights_.data();
    for (Bin<A>& b : bins_) {
      b.weights = weights;
      weights += b.count;
    }
    for_each_piece(count, [&](int64_t k, int64_t) {
      const Bin<A>* b = bins_.data() + k * of_region;
      for (int a = 0; a < 3; ++a) {
        for (int64_t i = 0; i < bins[a]; ++i, ++b) {
          roi_align3d::bin_weights(axes[3 * k + a], i, {b->first, b->count}, const_cast<A*>(b->weights));
        }
      }
    });
  }

 private:
  std::vector<Bin<A>> bins_;
  std::vector<A> weights_;
};

int64_t padded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

template <class T>
Tensor forward_typed(const Tensor& x, const Regions& regions, const Arguments& arguments) {
  using A = compute_t<T>;
  const auto x_sizes = sizes_of(x);
  const Layout5 layout = layout_of(x);
  const auto& bins = arguments.output_size;
  const int64_t count = regions.count();
  Tensor y = empty_volume<T>({count, x_sizes[1], bins[0], bins[1], bins[2]}, layout, op);
  if (y.numel() == 0) return y;
  const Tensor dense = to_layout(x, layout, op);
  const Tables<A> tables(regions, arguments, x_sizes);
  const Sizes sizes = make_sizes(x_sizes, layout, bins);
  const int64_t image = numel(x_sizes) / x_sizes[0], result = y.numel() / count;

  const int64_t pieces = count * bins[0];
  const int64_t tap_bytes = padded(bins[1] * tables.most_taps * static_cast<int64_t>(sizeof(Tap<A>)));
  const int64_t count_bytes = padded(bins[1] * static_cast<int64_t>(sizeof(int64_t)));
  const int64_t row_bytes =
      padded((tables.longest_row * sizes.inner + roi_align3d::slack) * static_cast<int64_t>(sizeof(A)));
  const int64_t each = tap_bytes + count_bytes + row_bytes;
  const memory::Scratch scratch(worker_count(pieces) * each, op);
  const auto run = best_for<T>(roi_align3d::forward_f32, roi_align3d::forward_bf16, roi_align3d::forward_f64);
  for_each_piece(pieces, [&](int64_t piece, int64_t worker) {
    const int64_t k = piece / bins[0];
    char* mine = scratch.as<char>() + worker * each;
    const roi_align3d::Forward<T> f{data<T>(dense) + regions.image[k] * image,
                                    mutable_data<T>(y) + k * result,
                                    sizes,
                                    tables.regions[k],
                                    reinterpret_cast<Tap<A>*>(mine),
                                    reinterpret_cast<int64_t*>(mine + tap_bytes),
                                    tables.most_taps,
                                    reinterpret_cast<A*>(mine + tap_bytes + count_bytes)};
    run(f, piece % bins[0]);
  });
  return y;
}

Tensor forward(const Tensor& x, const Tensor& boxes, const Tensor& images, std::vector<int64_t> output_size,
               double spatial_scale, int64_t sampling_ratio, bool aligned) {
  const Arguments arguments{std::move(output_size), spatial_scale, sampling_ratio, aligned};
  check(arguments);
  VOLNET_CHECK(x.dim() == 5, op, ": x must be [N, C, D, H, W], got ", shape_text(sizes_of(x)));
  const Regions regions = read_regions(boxes, images, x.size(0), spatial_scale, op);
  return with_floating_type(x.scalar_type(), op, "x",
                            [&](auto type) { return forward_typed<decltype(type)>(x, regions, arguments); });
}

template <class T>
Tensor backward_typed(const Tensor& grad, const Regions& regions, const std::vector<int64_t>& x_sizes,
                      Layout5 layout, const Arguments& arguments) {
  using A = compute_t<T>;
  Tensor dx = empty_volume<T>(x_sizes, layout, op);
  if (dx.numel() == 0) return dx;
  const Tensor dense = to_layout(grad, layout, op);
  const Tables<A> tables(regions, arguments, x_sizes);
  const Sizes sizes = make_sizes(x_sizes, layout, arguments.output_size);

  const auto bytes = [](int64_t elements) {
    return padded((elements + roi_align3d::slack) * static_cast<int64_t>(sizeof(A)));
  };
  const int64_t pieces = x_sizes[0] * sizes.planes * sizes.d;
  const int64_t bins_bytes = bytes(sizes.ph * sizes.pw * sizes.inner);
  const int64_t wide_bytes = bytes(sizes.ph * tables.longest_row * sizes.inner);
  const int64_t sums_bytes = sizeof(T) == sizeof(A) ? 0 : bytes(sizes.h * sizes.w * sizes.inner);
  const int64_t each = bins_bytes + wide_bytes + sums_bytes;
  const memory::Scratch scratch(worker_count(pieces) * each, op);
  const auto run =
      best_for<T>(roi_align3d::backward_f32, roi_align3d::backward_bf16, roi_align3d::backward_f64);
  for_each_piece(pieces, [&](int64_t piece, int64_t worker) {
    const int64_t d = piece % sizes.d, plane = piece / sizes.d % sizes.planes,
                  n = piece / sizes.d / sizes.planes;
    char* mine = scratch.as<char>() + worker * each;
    const int64_t begin = regions.image_begin[n];
    const roi_align3d::Backward<T> b{data<T>(dense),
                                     mutable_data<T>(dx),
                                     sizes,
                                     tables.regions.data(),
                                     regions.image_rows.data() + begin,
                                     regions.image_begin[n + 1] - begin,
                                     reinterpret_cast<A*>(mine),
                                     reinterpret_cast<A*>(mine + bins_bytes),
                                     reinterpret_cast<A*>(mine + bins_bytes + wide_bytes)};
    run(b, n, plane, d);
  });
  return dx;
}

// The gradient of an x of these sizes, in channels_last or plain layout.
Tensor backward(const Tensor& grad, const Tensor& boxes, const Tensor& images, std::vector<int64_t> x_sizes,
                bool channels_last, double spatial_scale, int64_t sampling_ratio, bool aligned) {
  const auto grad_sizes = sizes_of(grad);
  VOLNET_CHECK(grad_sizes.size() == 5 && x_sizes.size() == 5 && grad_sizes[0] == boxes.size(0) &&
                   grad_sizes[1] == x_sizes[1],
               op, " backward: grad ", shape_text(grad_sizes), " does not belong to x ", shape_text(x_sizes));
  const Arguments arguments{
      {grad_sizes.begin() + 2, grad_sizes.end()}, spatial_scale, sampling_ratio, aligned};
  check(arguments);
  const Regions regions = read_regions(boxes, images, x_sizes[0], spatial_scale, op);
  const Layout5 layout = channels_last ? Layout5::channels_last : Layout5::plain;
  return with_floating_type(grad.scalar_type(), op, "grad", [&](auto type) {
    return backward_typed<decltype(type)>(grad, regions, x_sizes, layout, arguments);
  });
}

}  // namespace
}  // namespace volnet

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) {
  m.def(
      "roi_align3d(Tensor x, Tensor boxes, Tensor images, int[] output_size, float spatial_scale, "
      "int sampling_ratio, bool aligned) -> Tensor");
  m.def(
      "_roi_align3d_backward(Tensor grad, Tensor boxes, Tensor images, int[] x_size, bool channels_last, "
      "float spatial_scale, int sampling_ratio, bool aligned) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) {
  m.impl("roi_align3d", TORCH_BOX(&volnet::forward));
  m.impl("_roi_align3d_backward", TORCH_BOX(&volnet::backward));
}

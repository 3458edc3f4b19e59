#include "kernels/roi_crop3d/roi_crop3d.h"

#include <cmath>

#include "kernels/sample_patches/sample_patches.h"
#include "ops/boxes.h"
#include "ops/pad_value.h"

namespace volnet {
namespace {

constexpr const char* op = "roi_crop3d";

// Work for one thread at a time: long enough to hide the counter, short enough to share among many cores.
constexpr int64_t piece_bytes = int64_t{128} << 10;
// Results larger than this together are not in the cache any more when they are read: they are stored past
// it.
constexpr int64_t stream_from = int64_t{16} << 20;

struct Box {
  int64_t start[3], size[3];
};

// Whole voxels: halves up on both sides, so that boxes of equal, whole sides stay equal wherever they lie.
std::vector<Box> rounded(const Regions& regions, int64_t channels) {
  std::vector<Box> boxes(static_cast<size_t>(regions.count()));
  for (int64_t k = 0; k < regions.count(); ++k) {
    double voxels = static_cast<double>(std::max<int64_t>(channels, 1));
    for (int a = 0; a < 3; ++a) {
      const double* box = regions.boxes.data() + 6 * k;
      const auto start = static_cast<int64_t>(std::floor(box[a] + 0.5));
      const int64_t size = static_cast<int64_t>(std::floor(box[3 + a] + 0.5)) - start;
      boxes[k].start[a] = start;
      boxes[k].size[a] = size;
      voxels *= static_cast<double>(std::max<int64_t>(size, 1));
    }
    VOLNET_CHECK(voxels < 1e15, op, ": boxes[", k, "] has ", voxels, " values");
  }
  return boxes;
}

// Strides of a crop [C, d, h, w].
std::vector<int64_t> crop_strides(const std::vector<int64_t>& sizes, bool channels_last) {
  if (!channels_last) return contiguous_strides(sizes);
  const auto strides = channels_last_strides({1, sizes[0], sizes[1], sizes[2], sizes[3]});
  return {strides.begin() + 1, strides.end()};
}

// channels_last: the channels of a voxel lie next to each other in x, and so do the voxels of a row.
std::vector<Tensor> forward(Tensor x, const Tensor& boxes, const Tensor& images, double pad_value,
                            bool channels_last) {
  VOLNET_CHECK(x.dim() == 5, op, ": x must be [N, C, D, H, W], got ", shape_text(sizes_of(x)));
  const Regions regions = read_regions(boxes, images, x.size(0), 1.0, op);
  const int64_t channels = x.size(1);
  const std::vector<Box> crops = rounded(regions, channels);
  if (channels_last) {
    VOLNET_CHECK((channels <= 1 || x.stride(1) == 1) && (x.size(4) <= 1 || x.stride(4) == channels), op,
                 ": x is not channels_last");
  } else if (x.size(4) > 1 && x.stride(4) != 1) {
    x = torch::stable::contiguous(x);
  }
  const auto element_size = static_cast<int64_t>(x.element_size());
  const int64_t planes = channels_last ? 1 : channels,
                voxel_bytes = (channels_last ? channels : 1) * element_size;

  std::vector<Tensor> results;
  int64_t bytes = 0;
  for (const Box& box : crops) {
    const std::vector<int64_t> sizes{channels, box.size[0], box.size[1], box.size[2]};
    results.push_back(
        empty_strided(sizes, crop_strides(sizes, channels_last), x.scalar_type(), element_size, op));
    bytes += numel(sizes) * element_size;
  }

  using sample_patches::Forward;
  struct Job {
    Forward patch;
    int64_t centers[3];
    int64_t slices, each, first_piece;
  };
  std::vector<Job> jobs(crops.size());
  int64_t pieces = 0;
  for (size_t k = 0; k < crops.size(); ++k) {
    const Box& box = crops[k];
    Job& job = jobs[k];
    for (int a = 0; a < 3; ++a) job.centers[a] = box.start[a] + box.size[a] / 2;
    const auto* image =
        static_cast<const char*>(x.const_data_ptr()) + regions.image[k] * x.stride(0) * element_size;
    job.patch = {.volume = image,
                 .channels = planes,
                 .extent = {x.size(2), x.size(3), x.size(4)},
                 .stride_c = x.stride(1) * element_size,
                 .stride_d = x.stride(2) * element_size,
                 .stride_h = x.stride(3) * element_size,
                 .centers = job.centers,
                 .patches = static_cast<char*>(results[k].mutable_data_ptr()),
                 .size = {box.size[0], box.size[1], box.size[2]},
                 .element_size = voxel_bytes,
                 .pad = pad_bytes(x.scalar_type(), pad_value, op),
                 .stream = bytes >= stream_from};
    const int64_t slice_bytes = box.size[1] * box.size[2] * voxel_bytes;
    job.slices = slice_bytes == 0 ? 0 : planes * box.size[0];
    job.each = std::max<int64_t>(1, piece_bytes / std::max<int64_t>(slice_bytes, 1));
    job.first_piece = pieces;
    pieces += (job.slices + job.each - 1) / job.each;
  }
  const auto run = sample_patches::forward_kernels.best();
  for_each_piece(pieces, [&](int64_t piece, int64_t) {
    const auto after = std::upper_bound(jobs.begin(), jobs.end(), piece,
                                        [](int64_t p, const Job& job) { return p < job.first_piece; });
    const Job& job = *(after - 1);
    const int64_t begin = (piece - job.first_piece) * job.each;
    run(job.patch, begin, std::min(begin + job.each, job.slices));
  });
  return results;
}

template <class T>
Tensor backward_typed(const std::vector<Tensor>& grads, const Regions& regions,
                      const std::vector<int64_t>& x_sizes, bool channels_last) {
  using A = compute_t<T>;
  Tensor dx = empty_volume<T>(x_sizes, channels_last ? Layout5::channels_last : Layout5::plain, op);
  if (dx.numel() == 0) return dx;
  const std::vector<Box> boxes = rounded(regions, x_sizes[1]);
  const auto layout = channels_last ? Layout5::channels_last : Layout5::plain;
  std::vector<Tensor> dense;  // in the order of the images
  std::vector<roi_crop3d::Crop<T>> crops;
  for (const int64_t k : regions.image_rows) {
    const Box& box = boxes[k];
    const std::vector<int64_t> expected{x_sizes[1], box.size[0], box.size[1], box.size[2]};
    VOLNET_CHECK(sizes_of(grads[k]) == expected && grads[k].scalar_type() == ScalarTypeOf<T>::value, op,
                 " backward: the gradient of crop ", k, " must be ", shape_text(expected), ", got ",
                 shape_text(sizes_of(grads[k])));
    dense.push_back(to_layout(torch::stable::unsqueeze(grads[k], 0), layout, op));
    const auto &start = box.start, &size = box.size;
    crops.push_back({data<T>(dense.back()), {start[0], start[1], start[2]}, {size[0], size[1], size[2]}});
  }
  const int64_t planes = channels_last ? 1 : x_sizes[1], inner = channels_last ? x_sizes[1] : 1;
  const int64_t depth = x_sizes[2], pieces = x_sizes[0] * planes * depth;
  const int64_t sums = sizeof(T) == sizeof(A) ? 0 : x_sizes[3] * x_sizes[4] * inner;
  const memory::Scratch scratch(worker_count(pieces) * sums * static_cast<int64_t>(sizeof(A)), op);
  const auto run = best_for<T>(roi_crop3d::backward_f32, roi_crop3d::backward_bf16, roi_crop3d::backward_f64);
  for_each_piece(pieces, [&](int64_t piece, int64_t worker) {
    const int64_t d = piece % depth, plane = piece / depth % planes, n = piece / depth / planes;
    const int64_t begin = regions.image_begin[n];
    const roi_crop3d::Backward<T> b{crops.data() + begin,
                                    regions.image_begin[n + 1] - begin,
                                    planes,
                                    inner,
                                    depth,
                                    x_sizes[3],
                                    x_sizes[4],
                                    mutable_data<T>(dx)};
    run(b, n, plane, d, scratch.as<A>() + worker * sums);
  });
  return dx;
}

// The gradient of an x of these sizes, in channels_last or plain layout; one gradient [C, d, h, w] for each
// box.
Tensor backward(const std::vector<Tensor>& grads, const Tensor& boxes, const Tensor& images,
                std::vector<int64_t> x_sizes, bool channels_last) {
  VOLNET_CHECK(x_sizes.size() == 5 && static_cast<int64_t>(grads.size()) == boxes.size(0), op,
               " backward: ", grads.size(), " gradients do not belong to ", boxes.size(0), " boxes in x ",
               shape_text(x_sizes));
  VOLNET_CHECK(!grads.empty(), op, " backward: no gradients");
  const Regions regions = read_regions(boxes, images, x_sizes[0], 1.0, op);
  return with_floating_type(grads[0].scalar_type(), op, "the gradient", [&](auto type) {
    return backward_typed<decltype(type)>(grads, regions, x_sizes, channels_last);
  });
}

}  // namespace
}  // namespace volnet

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) {
  m.def("roi_crop3d(Tensor x, Tensor boxes, Tensor images, float pad_value, bool channels_last) -> Tensor[]");
  m.def(
      "_roi_crop3d_backward(Tensor[] grads, Tensor boxes, Tensor images, int[] x_size, bool channels_last) "
      "-> "
      "Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) {
  m.impl("roi_crop3d", TORCH_BOX(&volnet::forward));
  m.impl("_roi_crop3d_backward", TORCH_BOX(&volnet::backward));
}

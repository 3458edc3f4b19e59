// torch.ops.volnet.cat and _cat_backward.
#include "kernels/cat/cat.h"

#include "ops/tensors.h"

namespace volnet {
namespace {

using cat::Params;
using cat::Part;

constexpr const char* op = "cat";

// Work for one thread at a time.
constexpr int64_t piece_bytes = int64_t{128} << 10;
// Larger results have mostly left the caches by the time they are read.
constexpr int64_t stream_from = int64_t{32} << 20;

// Joins the channels of volumes of the same images and voxels, or splits them.
void run(bool join, const std::vector<Tensor>& parts, const Tensor& joined, Layout5 layout) {
  if (joined.numel() == 0) return;
  const auto element_size = static_cast<int64_t>(joined.element_size());
  const int64_t images = joined.size(0), voxels = joined.size(2) * joined.size(3) * joined.size(4);
  const bool stream = joined.numel() * element_size >= stream_from;
  auto* const whole = static_cast<char*>(joined.mutable_data_ptr());
  std::vector<Part> runs;  // of a voxel in channels_last, of an image in plain layout
  int64_t all = 0;
  for (const Tensor& part : parts) {
    const int64_t run = part.size(1) * element_size * (layout == Layout5::plain ? voxels : 1);
    if (run == 0) continue;  // it may have no memory
    runs.push_back({static_cast<char*>(part.mutable_data_ptr()), run});
    all += run;
  }
  if (layout == Layout5::channels_last) {
    const int64_t count = images * voxels, each = std::max<int64_t>(piece_bytes / all, 1);
    const Params params{runs.data(), static_cast<int64_t>(runs.size()), whole, stream};
    const auto kernel = join ? cat::join_kernels.best() : cat::split_kernels.best();
    for_each_piece((count + each - 1) / each, [&](int64_t piece, int64_t) {
      kernel(params, piece * each, std::min((piece + 1) * each, count));
    });
    return;
  }
  const auto copy = cat::copy_kernels.best();
  const int64_t pieces = (all + piece_bytes - 1) / piece_bytes;
  for_each_piece(images * pieces, [&](int64_t piece, int64_t) {
    const int64_t image = piece / pieces, begin = piece % pieces * piece_bytes;
    const int64_t end = std::min(begin + piece_bytes, all);
    int64_t first = 0;  // byte of the image's with which a part begins
    for (const Part& part : runs) {
      const int64_t from = std::max(begin, first) - first, to = std::min(end, first + part.run) - first;
      char *own = part.data + image * part.run, *shared = whole + image * all + first;
      if (from < to) copy(join ? shared : own, join ? own : shared, from, to, stream);
      first += part.run;
    }
  });
}

Tensor forward(const std::vector<Tensor>& tensors, bool channels_last) {
  VOLNET_CHECK(!tensors.empty(), op, ": there is nothing to join");
  const Layout5 layout = channels_last ? Layout5::channels_last : Layout5::plain;
  const auto element_size = static_cast<int64_t>(tensors[0].element_size());
  VOLNET_CHECK(tensors[0].dim() == 5, op, ": a tensor must be [N, C, D, H, W], got ",
               shape_text(sizes_of(tensors[0])));
  std::vector<int64_t> sizes = sizes_of(tensors[0]);
  sizes[1] = 0;
  std::vector<Tensor> parts;
  for (const Tensor& tensor : tensors) {
    std::vector<int64_t> others = sizes_of(tensor);
    if (others.size() == 5) others[1] = sizes[1];
    VOLNET_CHECK(others == sizes && tensor.scalar_type() == tensors[0].scalar_type(), op, ": a tensor ",
                 shape_text(sizes_of(tensor)), " does not go with ", shape_text(sizes_of(tensors[0])));
    sizes[1] += tensor.size(1);
    parts.push_back(to_layout(tensor, layout, op));
  }
  Tensor y = empty_strided(sizes, channels_last ? channels_last_strides(sizes) : contiguous_strides(sizes),
                           tensors[0].scalar_type(), element_size, op);
  run(true, parts, y, layout);
  return y;
}

std::vector<Tensor> backward(const Tensor& grad, std::vector<int64_t> channels, bool channels_last) {
  const Layout5 layout = channels_last ? Layout5::channels_last : Layout5::plain;
  int64_t all = 0;
  for (const int64_t count : channels) all += count;
  VOLNET_CHECK(grad.dim() == 5 && grad.size(1) == all, op, " backward: the gradient ",
               shape_text(sizes_of(grad)), " does not have ", shape_text(channels), " channels");
  const Tensor dy = to_layout(grad, layout, op);
  std::vector<Tensor> parts;
  for (const int64_t count : channels) {
    std::vector<int64_t> sizes = sizes_of(dy);
    sizes[1] = count;
    parts.push_back(empty_strided(sizes,
                                  channels_last ? channels_last_strides(sizes) : contiguous_strides(sizes),
                                  dy.scalar_type(), static_cast<int64_t>(dy.element_size()), op));
  }
  run(false, parts, dy, layout);
  return parts;
}

}  // namespace
}  // namespace volnet

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) {
  m.def("cat(Tensor[] tensors, bool channels_last) -> Tensor");
  m.def("_cat_backward(Tensor grad, int[] channels, bool channels_last) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) {
  m.impl("cat", TORCH_BOX(&volnet::forward));
  m.impl("_cat_backward", TORCH_BOX(&volnet::backward));
}

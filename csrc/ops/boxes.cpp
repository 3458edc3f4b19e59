#include "ops/boxes.h"

namespace volnet {

Regions read_regions(const Tensor& boxes, const Tensor& images, int64_t batch, double scale, const char* op) {
  VOLNET_CHECK(boxes.dim() == 2 && boxes.size(1) == 6, op, ": boxes must be [K, 6], got ",
               shape_text(sizes_of(boxes)));
  VOLNET_CHECK(
      images.dim() == 1 && images.size(0) == boxes.size(0) && images.scalar_type() == ScalarType::Long, op,
      ": images must be int64 [", boxes.size(0), "], got ", type_name(images.scalar_type()), " ",
      shape_text(sizes_of(images)));
  const int64_t count = boxes.size(0);
  Regions regions{std::vector<double>(static_cast<size_t>(6 * count)), {}, {}, {}};
  const Tensor dense = torch::stable::contiguous(boxes), dense_images = torch::stable::contiguous(images);
  with_floating_type(boxes.scalar_type(), op, "boxes", [&](auto type) {
    read_valid_boxes(data<decltype(type)>(dense), count, regions.boxes.data(), op, "boxes");
  });
  constexpr double limit = static_cast<double>(int64_t{1} << 31);
  for (int64_t i = 0; i < 6 * count; ++i) {
    const double x_i = regions.boxes[i] * scale;
    VOLNET_CHECK(x_i >= -limit && x_i <= limit, op, ": boxes must lie within 2^31 voxels, got boxes[", i / 6,
                 "][", i % 6, "] = ", regions.boxes[i], " times ", scale);
  }

  const auto* image = data<int64_t>(dense_images);
  regions.image.assign(image, image + count);
  regions.image_begin.assign(static_cast<size_t>(batch + 1), 0);
  for (int64_t k = 0; k < count; ++k) {
    VOLNET_CHECK(image[k] >= 0 && image[k] < batch, op, ": boxes[", k, "] is of image ", image[k],
                 " in a batch of ", batch);
    ++regions.image_begin[image[k] + 1];
  }
  for (int64_t n = 0; n < batch; ++n) regions.image_begin[n + 1] += regions.image_begin[n];
  std::vector<int64_t> next(regions.image_begin.begin(), regions.image_begin.end() - 1);
  regions.image_rows.resize(static_cast<size_t>(count));
  for (int64_t k = 0; k < count; ++k) regions.image_rows[next[image[k]]++] = k;
  return regions;
}

}  // namespace volnet

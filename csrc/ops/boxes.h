// What the operators on boxes [K, 6] = (d1, h1, w1, d2, h2, w2) share.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>

#include "ops/dtypes.h"
#include "ops/tensors.h"

namespace volnet {

// Reads boxes [count, 6] as A. Raises, naming the first such row, if one is inverted or not finite.
template <class T, class A>
void read_valid_boxes(const T* boxes, int64_t count, A* out, const char* op, const char* name) {
  constexpr int64_t rows = 65536;  // a piece: fewer are not worth waking another thread
  std::atomic<int64_t> first_invalid{count};
  for_each_piece((count + rows - 1) / rows, [&](int64_t piece, int64_t) {
    const int64_t end = std::min((piece + 1) * rows, count);
    for (int64_t row = piece * rows; row < end; ++row) {
      A* box = out + 6 * row;
      bool valid = true;
      for (int i = 0; i < 6; ++i) {
        box[i] = static_cast<A>(to_float(boxes[6 * row + i]));
        valid &= std::abs(box[i]) <= std::numeric_limits<A>::max();
      }
      for (int a = 0; a < 3; ++a) valid &= box[a] <= box[3 + a];
      if (valid) continue;
      int64_t first = first_invalid.load();
      while (row < first && !first_invalid.compare_exchange_weak(first, row)) {
      }
      return;
    }
  });
  const int64_t row = first_invalid.load();
  if (row == count) return;
  const A* box = out + 6 * row;
  VOLNET_CHECK(false, op, ": ", name, " must be finite with d1 <= d2, h1 <= h2, w1 <= w2, got ", name, "[",
               row, "] = (", box[0], ", ", box[1], ", ", box[2], ", ", box[3], ", ", box[4], ", ", box[5],
               ")");
}

// Regions of a batch, in float64, with the rows of each image: image_rows[image_begin[n] .. image_begin[n +
// 1]).
struct Regions {
  std::vector<double> boxes;         // [K, 6]
  std::vector<int64_t> image;        // [K]
  std::vector<int64_t> image_begin;  // [N + 1]
  std::vector<int64_t> image_rows;   // [K]

  int64_t count() const { return static_cast<int64_t>(image.size()); }
};

// boxes [K, 6] and their images, int64 [K]. Raises, naming the row, where a box is invalid, where its image
// is not in [0, batch), or where it is further than 2^31 voxels from the origin after scaling.
Regions read_regions(const Tensor& boxes, const Tensor& images, int64_t batch, double scale, const char* op);

}  // namespace volnet

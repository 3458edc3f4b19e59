// Greedy non-maximum suppression of 3-D boxes, one group (one label) a call.
//
// Boxes come in decreasing order of score. In that order, a box is dropped if its IoU with a box kept before
// it exceeds the threshold:
//   inter = max(min(d2) - max(d1), 0) * max(min(h2) - max(h1), 0) * max(min(w2) - max(w1), 0)
//   iou   = inter / (volume_a + volume_b - inter),   volume = (d2 - d1) * (h2 - h1) * (w2 - w1)
// each operation rounded to T, products from left to right, so that every kernel decides alike. 0 / 0
// compares as not above the threshold, which is at least 0: boxes that share no volume never suppress each
// other, and only those have to be compared that a uniform grid puts into a common cell.
//
// No pointers alias. boxes and keep need no alignment, scratch 64 bytes. Coordinates are finite, d1 <= d2 and
// so on.
#pragma once

#include <algorithm>
#include <cstdint>

#include "isa/dispatch.h"

namespace volnet::nms3d {

template <class T>
struct Params {
  const T* boxes;  // [count, 6]
  int64_t count;
  T iou_threshold;  // >= 0
  uint8_t* keep;    // [count] out: 1 where the box is kept
  void* scratch;    // scratch_bytes<T>(count)
};

// Kept boxes lie in blocks of this many, one row a quantity.
inline constexpr int64_t block_boxes = 16;
inline constexpr int64_t block_rows = 7;  // d1, h1, w1, d2, h2, w2, volume

// The grid has at most a cell for so many boxes, and is coarse enough that a box touches few cells on
// average.
inline constexpr int64_t boxes_per_cell = 8;
inline constexpr int64_t touches_per_box = 8;

inline int64_t max_cells(int64_t count) { return std::max<int64_t>(count / boxes_per_cell, 1); }

inline int64_t max_blocks(int64_t count) {
  return (count * touches_per_box + block_boxes - 1) / block_boxes + max_cells(count);
}

template <class T>
int64_t scratch_bytes(int64_t count) {
  const int64_t blocks = max_blocks(count) * block_rows * block_boxes * static_cast<int64_t>(sizeof(T));
  const int64_t tables = 2 * max_cells(count) * static_cast<int64_t>(sizeof(int64_t));
  return blocks + (tables + 63) / 64 * 64;
}

namespace scalar {
void suppress_f32(const Params<float>&);
void suppress_f64(const Params<double>&);
}  // namespace scalar
namespace avx2 {
void suppress_f32(const Params<float>&);
}
namespace avx512 {
void suppress_f32(const Params<float>&);
}

extern const isa::KernelTable<void (*)(const Params<float>&)> suppress_f32;
extern const isa::KernelTable<void (*)(const Params<double>&)> suppress_f64;

// order[rank] = index, by increasing key, equal keys in the order they come in. `keys` is overwritten; the
// scratch arrays are [count].
void stable_order(uint64_t* keys, int64_t* order, int64_t count, uint64_t* key_scratch,
                  int64_t* order_scratch);

// A key that increases as the score decreases; equal scores (0 and -0 too) have equal keys. No NaN.
uint64_t decreasing_key(float score);
uint64_t decreasing_key(double score);

}  // namespace volnet::nms3d

// How backward brings what the windows of a row give to the voxels of the row: the sizes of its scratch. The
// vector code is in spread_body.h.
//
// values[j * pitch + o] is what output o brings to its tap j, in a padded row for each tap, or one for all
// (pitch 0). A voxel is the sum of a few of them:
//   stride 1: vectors shifted by a tap's distance;
//   stride 2: even and odd voxels by themselves, each as for stride 1, and then one by one in turn;
//   otherwise, with tables, and where fewer outputs than taps reach a voxel: a table of which values, and
//     gathers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/pooling/axis.h"

namespace volnet::pooling {

inline constexpr int64_t widest = 16;  // lanes of the widest Vec

static inline int64_t round_up(int64_t n) { return (n + widest - 1) / widest * widest; }

static inline bool spreads_by_table(const Axis& a) { return a.windows || a.stride > 2 || a.out < a.kernel; }

// Zeros in front of the values of a tap.
static inline int64_t spread_left(const Axis& a) {
  return spreads_by_table(a) ? 0 : round_up(span(a) / a.stride);
}

// Floats of a padded row of values, zeros in front included.
static inline int64_t spread_row_length(const Axis& a) {
  const int64_t reach = spreads_by_table(a) ? a.out : (a.in + a.padding) / a.stride + 1 + widest;
  return spread_left(a) + round_up(std::max(a.out, reach)) + widest;
}

// Entries of the table.
static inline int64_t spread_table_length(const Axis& a) {
  return spreads_by_table(a) ? most_outputs(a) * round_up(a.in) : 0;
}

// Rows that are made at once, so that none waits for what it has just stored.
static inline int64_t rows_at_once(const Axis& a) { return std::clamp<int64_t>(1024 / a.in, 1, 8); }

// Elements of these rows, one behind the other; vectors reach past the last.
static inline int64_t spread_result_length(const Axis& a) {
  return round_up(rows_at_once(a) * a.in) + 2 * widest;
}

// Where a row of a volume is, for loops over rows.
struct RowAt {
  int64_t plane, d, h;

  RowAt(int64_t row, int64_t slices, int64_t rows)
      : plane(row / rows / slices), d(row / rows % slices), h(row % rows), slices_(slices), rows_(rows) {}
  void next() {
    if (++h < rows_) return;
    h = 0;
    if (++d < slices_) return;
    d = 0;
    ++plane;
  }

 private:
  int64_t slices_, rows_;
};

}  // namespace volnet::pooling

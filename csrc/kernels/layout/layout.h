// Changing between plain [C, S] and channels-last [S, C], S = D*H*W, one image at a time.
//
//   dst[c * rows + r] = src[r * columns + c]   for the r and c of a rectangle
//
// src is [rows, columns], dst is [columns, rows], dense. Elements of 2, 4 or 8 bytes, aligned to their size;
// src and dst do not alias. Calls whose rectangles do not overlap may run at the same time.
#pragma once

#include <cstdint>

#include "isa/dispatch.h"

namespace volnet::layout {

struct Transpose {
  const void* src;
  void* dst;
  int64_t rows, columns;
  bool stream;  // for results that do not fit the caches: write past them where the level can
};

struct Rectangle {
  int64_t row_begin, row_end, column_begin, column_end;
};

// Cut rectangles at multiples of this many rows and columns: then no two of them write the same cache line of
// a dst that starts a line, and tiles are whole but for the last.
inline constexpr int64_t cut = 32;

using Function = void (*)(const Transpose&, const Rectangle&);

#define VOLNET_DECLARE                                   \
  void transpose_b2(const Transpose&, const Rectangle&); \
  void transpose_b4(const Transpose&, const Rectangle&); \
  void transpose_b8(const Transpose&, const Rectangle&);
namespace scalar {
VOLNET_DECLARE
}  // namespace scalar
namespace avx2 {
VOLNET_DECLARE
}  // namespace avx2
namespace avx512 {
VOLNET_DECLARE
}  // namespace avx512
#undef VOLNET_DECLARE

extern const isa::KernelTable<Function> kernels_b2, kernels_b4, kernels_b8;

}  // namespace volnet::layout

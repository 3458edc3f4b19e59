#include "kernels/layout/layout.h"

#include <algorithm>

namespace volnet::layout {
namespace {

// Blocks of a few cache lines in both directions, so that each line is read and written once.
constexpr int64_t block = 32;

template <class T>
void transpose_typed(const T* src, T* dst, int64_t rows, int64_t columns, const Rectangle& part) {
  for (int64_t r0 = part.row_begin; r0 < part.row_end; r0 += block) {
    const int64_t r1 = std::min(r0 + block, part.row_end);
    for (int64_t c0 = part.column_begin; c0 < part.column_end; c0 += block) {
      const int64_t c1 = std::min(c0 + block, part.column_end);
      for (int64_t c = c0; c < c1; ++c) {
        for (int64_t r = r0; r < r1; ++r) dst[c * rows + r] = src[r * columns + c];
      }
    }
  }
}

}  // namespace

void transpose(const void* src, void* dst, int64_t rows, int64_t columns, const Rectangle& part,
               int64_t element_size) {
  const auto run = [&](auto type) {
    using T = decltype(type);
    transpose_typed(static_cast<const T*>(src), static_cast<T*>(dst), rows, columns, part);
  };
  if (element_size == 2) {
    run(uint16_t{});
  } else if (element_size == 4) {
    run(uint32_t{});
  } else {
    run(uint64_t{});
  }
}

}  // namespace volnet::layout

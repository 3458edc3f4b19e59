// Changing between plain [C, S] and channels-last [S, C], S = D*H*W, one image at a time.
//
// dst[c * rows + r] = src[r * columns + c] for the r and c of the rectangle. src is [rows, columns], dst is
// [columns, rows]; they must not alias. Element sizes 2, 4 and 8 bytes.
#pragma once

#include <cstdint>

namespace volnet::layout {

struct Rectangle {
  int64_t row_begin, row_end, column_begin, column_end;
};

void transpose(const void* src, void* dst, int64_t rows, int64_t columns, const Rectangle& part,
               int64_t element_size);

}  // namespace volnet::layout

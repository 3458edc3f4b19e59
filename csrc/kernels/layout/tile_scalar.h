// Included inside volnet::layout::VOLNET_ISA. tile_avx2.h and tile_avx512.h say the same in registers.

template <class E>
struct Tile {
  static constexpr int64_t rows = 16, columns = 16;

  // dst[c * dst_pitch + r] = src[r * src_pitch + c] for the first `rows` r and `columns` c.
  static inline void move(const E* src, int64_t src_pitch, E* dst, int64_t dst_pitch) {
    move_part(src, src_pitch, dst, dst_pitch, rows, columns);
  }
  // The same past the caches where the level can; the columns of dst start at multiples of the size of
  // `rows` elements.
  static inline void stream(const E* src, int64_t src_pitch, E* dst, int64_t dst_pitch) {
    move(src, src_pitch, dst, dst_pitch);
  }
  // The same for fewer rows or columns; the memory of the others is not touched.
  static inline void move_part(const E* src, int64_t src_pitch, E* dst, int64_t dst_pitch, int64_t row_count,
                               int64_t column_count) {
    for (int64_t c = 0; c < column_count; ++c) {
      for (int64_t r = 0; r < row_count; ++r) dst[c * dst_pitch + r] = src[r * src_pitch + c];
    }
  }
};

// Orders what stream() wrote before what this thread writes next.
static inline void stream_end() {}

#include "kernels/layout/few.h"

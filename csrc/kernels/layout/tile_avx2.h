// Included inside volnet::layout::VOLNET_ISA; the meaning is in tile_scalar.h.

static inline __m256i load_row(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

// 8 rows of 8 elements of 4 bytes become 8 columns.
static inline void transpose_registers_b4(__m256i (&x)[8]) {
  __m256i t[8];
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
  }
  __m256i quad[8];  // quad[4i + j]: rows 4i to 4i + 3 of the columns j and 4 + j
  for (int i = 0; i < 2; ++i) {
    quad[4 * i] = _mm256_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    quad[4 * i + 1] = _mm256_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    quad[4 * i + 2] = _mm256_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    quad[4 * i + 3] = _mm256_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int j = 0; j < 4; ++j) {
    x[j] = _mm256_permute2x128_si256(quad[j], quad[4 + j], 0x20);
    x[4 + j] = _mm256_permute2x128_si256(quad[j], quad[4 + j], 0x31);
  }
}

static inline void read_tile(const uint32_t* src, int64_t pitch, __m256i (&x)[8]) {
  for (int r = 0; r < 8; ++r) x[r] = load_row(src + r * pitch);
  transpose_registers_b4(x);
}

// Two neighbouring rows of 2-byte elements are one row of 4-byte pairs.
static inline void read_tile(const uint16_t* src, int64_t pitch, __m256i (&x)[8]) {
  for (int i = 0; i < 8; ++i) {
    const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + 2 * i * pitch));
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + (2 * i + 1) * pitch));
    x[i] = _mm256_set_m128i(_mm_unpackhi_epi16(a, b), _mm_unpacklo_epi16(a, b));
  }
  transpose_registers_b4(x);
}

static inline void read_tile(const uint64_t* src, int64_t pitch, __m256i (&x)[4]) {
  __m256i pair[4];
  for (int i = 0; i < 2; ++i) {
    const __m256i a = load_row(src + 2 * i * pitch), b = load_row(src + (2 * i + 1) * pitch);
    pair[2 * i] = _mm256_unpacklo_epi64(a, b);
    pair[2 * i + 1] = _mm256_unpackhi_epi64(a, b);
  }
  for (int j = 0; j < 2; ++j) {
    x[j] = _mm256_permute2x128_si256(pair[j], pair[2 + j], 0x20);
    x[2 + j] = _mm256_permute2x128_si256(pair[j], pair[2 + j], 0x31);
  }
}

template <class E>
struct Tile {
  static constexpr int64_t rows = 32 / sizeof(E), columns = sizeof(E) == 8 ? 4 : 8;

  static inline void move(const E* src, int64_t src_pitch, E* dst, int64_t dst_pitch) {
    __m256i x[columns];
    read_tile(src, src_pitch, x);
    for (int64_t c = 0; c < columns; ++c) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + c * dst_pitch), x[c]);
    }
  }
  // Half a line at a time past the caches is several times slower than through them.
  static inline void stream(const E* src, int64_t src_pitch, E* dst, int64_t dst_pitch) {
    move(src, src_pitch, dst, dst_pitch);
  }
  static inline void move_part(const E* src, int64_t src_pitch, E* dst, int64_t dst_pitch, int64_t row_count,
                               int64_t column_count) {
    for (int64_t c = 0; c < column_count; ++c) {
      for (int64_t r = 0; r < row_count; ++r) dst[c * dst_pitch + r] = src[r * src_pitch + c];
    }
  }
};

static inline void stream_end() {}

#include "kernels/layout/few.h"

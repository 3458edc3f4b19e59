// What the AMX kernels share: tile instructions, numbers in bfloat16 parts, fetching ahead. Included inside
// the namespace of the level after Vec.

// The tile instructions as the compiler must see them: they read and write memory.
#define VOLNET_TILE_LOAD(tile, from, stride) \
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile::"r"(from), "r"(stride) : "memory")
#define VOLNET_TILE_STORE(tile, to, stride) \
  __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"(stride) : "memory")

// All tiles sixteen lines of 64 bytes. GCC 12 believes that _tile_loadconfig reads eight bytes, and may not
// write the others.
inline void configure_tiles() {
  static constexpr struct alignas(64) {
    uint8_t palette = 1, start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t line_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t lines[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } config{};
  __asm__ volatile("ldtilecfg %0" ::"m"(config));
}

// Sixteen floats to bfloat16, and what the rounding leaves.
inline __m256i split(__m512 value, __m512& rest) {
  const __m256i high = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value));
  rest = _mm512_sub_ps(value, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16)));
  return high;
}

// The same part of two vectors in pairs: lane i holds even[i] below odd[i]; what is left stays in the
// vectors.
inline __m512i split_pairs(__m512& even, __m512& odd) {
  const __m512i low = _mm512_cvtepu16_epi32(split(even, even)), high = _mm512_cvtepu16_epi32(split(odd, odd));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// 16 lines of 16 dwords become 16 columns.
inline void transpose(__m512i (&x)[16]) {
  __m512i t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 4; ++i) {  // x[4i + j], quarter l: lines 4i to 4i + 3 of column 4l + j
    x[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    x[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    x[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    x[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 16
  for (int j = 0; j < 4; ++j) {
    const __m512i low0 = _mm512_shuffle_i32x4(x[j], x[4 + j], 0x44);
    const __m512i high0 = _mm512_shuffle_i32x4(x[j], x[4 + j], 0xee);
    const __m512i low1 = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0x44);
    const __m512i high1 = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0xee);
    t[j] = _mm512_shuffle_i32x4(low0, low1, 0x88);
    t[4 + j] = _mm512_shuffle_i32x4(low0, low1, 0xdd);
    t[8 + j] = _mm512_shuffle_i32x4(high0, high1, 0x88);
    t[12 + j] = _mm512_shuffle_i32x4(high0, high1, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) x[i] = t[i];
}

// Memory that will be read soon, fetched little by little while tiles are multiplied: rows of `row` bytes,
// `row_step` apart, in planes that lie `plane_step` apart.
struct Ahead {
  const char* plane = nullptr;
  int64_t row = 0, row_step = 0, rows = 0, plane_step = 0, planes = 0;
  int64_t rate = 0, due = 0;      // lines a step and lines to be fetched now, in 256ths
  int64_t at = 0, row_index = 0;  // within the plane

  // To be done after `steps` steps.
  void spread(int64_t steps) {
    rate = ((row + 63) / 64 * rows * planes * 256 + steps - 1) / std::max<int64_t>(steps, 1);
  }

  void step(int64_t steps = 1) {
    for (due += steps * rate; due >= 256; due -= 256) {
      if (planes == 0) return;
      __builtin_prefetch(plane + row_index * row_step + at, 0, 2);
      at += 64;
      if (at < row) continue;
      at = 0;
      if (++row_index < rows) continue;
      row_index = 0;
      plane += plane_step;
      --planes;
    }
  }
};

// Included inside volnet::layout::VOLNET_ISA; the meaning is in tile_scalar.h.

static inline uint32_t first_bits(int64_t n) { return _bzhi_u32(~uint32_t{0}, static_cast<uint32_t>(n)); }

// What the lanes of 128 bits of a, b, c and d hold, by lane: out[i] is lane i of each.
static inline void transpose_lanes(__m512i a, __m512i b, __m512i c, __m512i d, __m512i& out0, __m512i& out1,
                                   __m512i& out2, __m512i& out3) {
  const __m512i ab01 = _mm512_shuffle_i32x4(a, b, 0x44), ab23 = _mm512_shuffle_i32x4(a, b, 0xee);
  const __m512i cd01 = _mm512_shuffle_i32x4(c, d, 0x44), cd23 = _mm512_shuffle_i32x4(c, d, 0xee);
  out0 = _mm512_shuffle_i32x4(ab01, cd01, 0x88);
  out1 = _mm512_shuffle_i32x4(ab01, cd01, 0xdd);
  out2 = _mm512_shuffle_i32x4(ab23, cd23, 0x88);
  out3 = _mm512_shuffle_i32x4(ab23, cd23, 0xdd);
}

// 16 rows of 16 elements of 4 bytes become 16 columns.
static inline void transpose_registers(__m512i (&x)[16]) {
  __m512i t[16];
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
  }
  __m512i quad[16];  // quad[4i + j], lane l: rows 4i to 4i + 3 of column 4l + j
  for (int i = 0; i < 4; ++i) {
    quad[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    quad[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    quad[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    quad[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int j = 0; j < 4; ++j) {
    transpose_lanes(quad[j], quad[4 + j], quad[8 + j], quad[12 + j], x[j], x[4 + j], x[8 + j], x[12 + j]);
  }
}

// 8 rows of 8 elements of 8 bytes become 8 columns.
static inline void transpose_registers(__m512i (&x)[8]) {
  __m512i pair[8];  // pair[2i + j], lane l: rows 2i and 2i + 1 of column 2l + j
  for (int i = 0; i < 4; ++i) {
    pair[2 * i] = _mm512_unpacklo_epi64(x[2 * i], x[2 * i + 1]);
    pair[2 * i + 1] = _mm512_unpackhi_epi64(x[2 * i], x[2 * i + 1]);
  }
  for (int j = 0; j < 2; ++j) {
    transpose_lanes(pair[j], pair[2 + j], pair[4 + j], pair[6 + j], x[j], x[2 + j], x[4 + j], x[6 + j]);
  }
}

// The first n elements of a row of a tile; the others are zero and their memory is not touched.
static inline __m512i load_part(const uint32_t* p, int64_t n) {
  return _mm512_maskz_loadu_epi32(static_cast<__mmask16>(first_bits(n)), p);
}
static inline __m512i load_part(const uint64_t* p, int64_t n) {
  return _mm512_maskz_loadu_epi64(static_cast<__mmask8>(first_bits(n)), p);
}
static inline __m512i load_part(const uint16_t* p, int64_t n) {
  return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(static_cast<__mmask16>(first_bits(n)), p));
}
static inline __m512i load_whole(const uint16_t* p) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
template <class E>
static inline __m512i load_whole(const E* p) {
  return _mm512_loadu_si512(p);
}
static inline void store_part(uint16_t* p, __m512i x, int64_t n) {
  _mm512_mask_storeu_epi16(p, first_bits(n), x);
}
static inline void store_part(uint32_t* p, __m512i x, int64_t n) {
  _mm512_mask_storeu_epi32(p, static_cast<__mmask16>(first_bits(n)), x);
}
static inline void store_part(uint64_t* p, __m512i x, int64_t n) {
  _mm512_mask_storeu_epi64(p, static_cast<__mmask8>(first_bits(n)), x);
}

template <class E>
struct Tile {
  static constexpr int64_t rows = 64 / sizeof(E), columns = sizeof(E) == 8 ? 8 : 16;

  static inline void read(const E* src, int64_t pitch, __m512i (&x)[columns]) {
    if constexpr (sizeof(E) == 2) {  // two neighbouring rows are one row of 4-byte pairs
      for (int64_t i = 0; i < columns; ++i) {
        const __m512i odd = load_whole(src + (2 * i + 1) * pitch);
        x[i] = _mm512_or_si512(load_whole(src + 2 * i * pitch), _mm512_slli_epi32(odd, 16));
      }
    } else {
      for (int64_t r = 0; r < rows; ++r) x[r] = load_whole(src + r * pitch);
    }
    transpose_registers(x);
  }
  static inline __m512i row_part(const E* src, int64_t pitch, int64_t r, int64_t row_count,
                                 int64_t column_count) {
    return r < row_count ? load_part(src + r * pitch, column_count) : _mm512_setzero_si512();
  }
  static inline void read_part(const E* src, int64_t pitch, int64_t row_count, int64_t column_count,
                               __m512i (&x)[columns]) {
    if constexpr (sizeof(E) == 2) {
      for (int64_t i = 0; i < columns; ++i) {
        const __m512i odd = row_part(src, pitch, 2 * i + 1, row_count, column_count);
        x[i] =
            _mm512_or_si512(row_part(src, pitch, 2 * i, row_count, column_count), _mm512_slli_epi32(odd, 16));
      }
    } else {
      for (int64_t r = 0; r < rows; ++r) x[r] = row_part(src, pitch, r, row_count, column_count);
    }
    transpose_registers(x);
  }

  static inline void move(const E* src, int64_t src_pitch, E* dst, int64_t dst_pitch) {
    __m512i x[columns];
    read(src, src_pitch, x);
    for (int64_t c = 0; c < columns; ++c) _mm512_storeu_si512(dst + c * dst_pitch, x[c]);
  }
  static inline void stream(const E* src, int64_t src_pitch, E* dst, int64_t dst_pitch) {
    __m512i x[columns];
    read(src, src_pitch, x);
    for (int64_t c = 0; c < columns; ++c) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(dst + c * dst_pitch), x[c]);
    }
  }
  static inline void move_part(const E* src, int64_t src_pitch, E* dst, int64_t dst_pitch, int64_t row_count,
                               int64_t column_count) {
    __m512i x[columns];
    read_part(src, src_pitch, row_count, column_count, x);
    for (int64_t c = 0; c < columns; ++c) {
      if (c < column_count) store_part(dst + c * dst_pitch, x[c], row_count);
    }
  }
};

static inline void stream_end() { _mm_sfence(); }

static inline __m512i permute(__m512i old, uint32_t mask, __m512i index, __m512i x, uint16_t) {
  return _mm512_mask_permutexvar_epi16(old, mask, index, x);
}
static inline __m512i permute(__m512i old, uint32_t mask, __m512i index, __m512i x, uint32_t) {
  return _mm512_mask_permutexvar_epi32(old, static_cast<__mmask16>(mask), index, x);
}
static inline __m512i permute(__m512i old, uint32_t mask, __m512i index, __m512i x, uint64_t) {
  return _mm512_mask_permutexvar_epi64(old, static_cast<__mmask8>(mask), index, x);
}

// A few channels: each vector of the result is put together from one permutation of each vector of the
// source. Lane l of vector j of a joined run is element f = j * width + l: voxel f / channels of channel
// f % channels.
template <class E>
struct Few {
  static constexpr int64_t width = 64 / sizeof(E);
  static constexpr int64_t most = sizeof(E) == 8 ? 4 : 8;  // channels; from there a tile is cheaper

  struct Plan {
    __m512i index[most];
    uint32_t mask[most][most];  // [result][source]: the lanes that come from there
  };

  static inline void plan(bool joins, int64_t channels, Plan& p) {
    for (int64_t j = 0; j < channels; ++j) {
      E index[width];
      for (int64_t i = 0; i < channels; ++i) p.mask[j][i] = 0;
      for (int64_t l = 0; l < width; ++l) {
        const int64_t f = joins ? j * width + l : l * channels + j;
        index[l] = static_cast<E>(joins ? f / channels : f % width);
        p.mask[j][joins ? f % channels : f / width] |= uint32_t{1} << l;
      }
      p.index[j] = _mm512_loadu_si512(index);
    }
  }

  // What is left of a run of n elements from its i-th vector on, as the elements of that vector.
  static inline uint64_t left(int64_t n, int64_t i) {
    return static_cast<uint64_t>(std::clamp<int64_t>(n - i * width, 0, width));
  }
  static inline __m512i load(const E* p, int64_t n) {
    return _mm512_maskz_loadu_epi8(_bzhi_u64(~uint64_t{0}, static_cast<uint32_t>(n * sizeof(E))), p);
  }
  static inline void store(E* p, __m512i x, int64_t n) {
    _mm512_mask_storeu_epi8(p, _bzhi_u64(~uint64_t{0}, static_cast<uint32_t>(n * sizeof(E))), x);
  }

  static inline void move(bool joins, int64_t channels, const E* src, E* dst, int64_t pitch, int64_t voxels,
                          bool stream) {
    Plan p;
    plan(joins, channels, p);
    const int64_t src_step = joins ? pitch : width, dst_step = joins ? width : pitch;
    const int64_t src_run = joins ? width : width * channels, dst_run = joins ? width * channels : width;
    int64_t v = 0;
    for (; v + width <= voxels; v += width, src += src_run, dst += dst_run) {
      for (int64_t j = 0; j < channels; ++j) {
        __m512i x = _mm512_setzero_si512();
        for (int64_t i = 0; i < channels; ++i) {
          x = permute(x, p.mask[j][i], p.index[j], _mm512_loadu_si512(src + i * src_step), E{});
        }
        if (stream) {
          _mm512_stream_si512(reinterpret_cast<__m512i*>(dst + j * dst_step), x);
        } else {
          _mm512_storeu_si512(dst + j * dst_step, x);
        }
      }
    }
    const int64_t rest = voxels - v;
    if (rest == 0) return;
    for (int64_t j = 0; j < channels; ++j) {
      __m512i x = _mm512_setzero_si512();
      for (int64_t i = 0; i < channels; ++i) {
        const int64_t n = joins ? rest : left(rest * channels, i);
        x = permute(x, p.mask[j][i], p.index[j], load(src + i * src_step, n), E{});
      }
      store(dst + j * dst_step, x, joins ? left(rest * channels, j) : rest);
    }
  }
};

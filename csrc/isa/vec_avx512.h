// Vec of sixteen floats in AVX-512 (F, BW, DQ, VL). The meaning of each function is in vec_scalar.h.
#include "isa/masked.h"

struct Vec {
  using element = float;
  static constexpr int64_t width = 16;
  __m512 v;

  static inline __mmask16 lanes_below(int64_t n) {
    return static_cast<__mmask16>(_bzhi_u32(0xffffu, static_cast<uint32_t>(n)));
  }

  static inline Vec zero() { return {_mm512_setzero_ps()}; }
  static inline Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
  static inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static inline Vec widen(__m256i half) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
  }
  static inline Vec load(const bfloat16* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static inline Vec load(const int16_t* p) {
    return {
        _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))))};
  }
  static inline Vec load(const int16_t* p, int64_t n) {
    reads(p, n * int64_t{sizeof *p});
    return {_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_maskz_loadu_epi16(lanes_below(n), p)))};
  }
  static inline Vec load(const float* p, int64_t n) {
    reads(p, n * int64_t{sizeof *p});
    return {_mm512_maskz_loadu_ps(lanes_below(n), p)};
  }
  static inline Vec load(const bfloat16* p, int64_t n) {
    reads(p, n * int64_t{sizeof *p});
    return widen(_mm256_maskz_loadu_epi16(lanes_below(n), p));
  }
  inline __m256i narrow() const {
#ifdef __AVX512BF16__
    return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v));
#else
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __m512i words = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), quiet);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(words, 16));
#endif
  }
  inline void store(float* p) const { _mm512_storeu_ps(p, v); }
  inline void store(bfloat16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow()); }
  inline __m256i to_int16() const {
    const __m512 in_range =
        _mm512_min_ps(_mm512_max_ps(v, _mm512_set1_ps(-32768.0f)), _mm512_set1_ps(32767.0f));
    return _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(in_range));
  }
  inline void store(int16_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_int16()); }
  inline void store(int16_t* p, int64_t n) const {
    writes(p, n * int64_t{sizeof *p});
    _mm256_mask_storeu_epi16(p, lanes_below(n), to_int16());
  }
  inline void store(float* p, int64_t n) const {
    writes(p, n * int64_t{sizeof *p});
    _mm512_mask_storeu_ps(p, lanes_below(n), v);
  }
  inline void store(bfloat16* p, int64_t n) const {
    writes(p, n * int64_t{sizeof *p});
    _mm256_mask_storeu_epi16(p, lanes_below(n), narrow());
  }
  inline void stream(float* p) const {
    writes(p, width * int64_t{sizeof *p});
    _mm512_stream_ps(p, v);
  }
  inline void stream(bfloat16* p) const {
    writes(p, width * int64_t{sizeof *p});
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), narrow());
  }
  inline void stream(int16_t* p) const {
    writes(p, width * int64_t{sizeof *p});
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), to_int16());
  }

  static inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
  static inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
  static inline Vec power_of_two(Vec n) { return {_mm512_scalef_ps(_mm512_set1_ps(1.0f), n.v)}; }
  static inline Vec scale(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }
  static inline __mmask16 greater_or_nan(Vec a, Vec b) {
    return static_cast<__mmask16>(_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ) |
                                  _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q));
  }
  static inline Vec select(__mmask16 mask, Vec yes, Vec no) {
    return {_mm512_mask_mov_ps(no.v, mask, yes.v)};
  }
  using Mask = __mmask16;
  static inline Mask greater(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
  static inline Mask equal(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ); }
  static inline Mask equal(const int64_t* p, int64_t n, int64_t value) {
    reads(p, n * int64_t{sizeof *p});
    const __m512i all = _mm512_set1_epi64(value);
    const __mmask16 lanes = lanes_below(n);
    const auto low = static_cast<__mmask8>(lanes), high = static_cast<__mmask8>(lanes >> 8);
    return _mm512_kunpackb(_mm512_mask_cmpeq_epi64_mask(high, _mm512_maskz_loadu_epi64(high, p + 8), all),
                           _mm512_mask_cmpeq_epi64_mask(low, _mm512_maskz_loadu_epi64(low, p), all));
  }
  static inline Mask is_nan(Vec a) { return _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q); }
  static inline Mask both(Mask a, Mask b) { return static_cast<Mask>(a & b); }
  static inline Mask either(Mask a, Mask b) { return static_cast<Mask>(a | b); }
  static inline __m512i even_lanes() {
    return _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  }
  static inline Vec even(Vec a, Vec b) { return {_mm512_permutex2var_ps(a.v, even_lanes(), b.v)}; }
  static inline Vec pick(const int32_t* lanes, Vec a) {
    return {_mm512_permutexvar_ps(_mm512_loadu_si512(lanes), a.v)};
  }
  static inline Vec pick(const int32_t* lanes, Vec a, Vec b) {
    const __m512i lane = _mm512_loadu_si512(lanes);
    const __mmask16 some = _mm512_cmpge_epi32_mask(lane, _mm512_setzero_si512());
    return {_mm512_maskz_permutex2var_ps(some, a.v, lane, b.v)};
  }
  static inline Vec gather(const float* p, const int32_t* lanes) {
    reads_at(p, lanes, width);
    return {_mm512_i32gather_ps(_mm512_loadu_si512(lanes), p, 4)};
  }
  static inline bool any_greater(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ) != 0; }
  inline float sum() const {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  inline float greatest() const {
    const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }
};
inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }

struct VecInt {
  __m512i v;
  static inline VecInt broadcast(int32_t x) { return {_mm512_set1_epi32(x)}; }
  static inline VecInt load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
  inline void store(int32_t* p) const { _mm512_storeu_si512(p, v); }
  static inline VecInt select(__mmask16 mask, VecInt yes, VecInt no) {
    return {_mm512_mask_mov_epi32(no.v, mask, yes.v)};
  }
  static inline VecInt iota() {
    return {_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)};
  }
  static inline Vec::Mask less(VecInt a, VecInt b) { return _mm512_cmplt_epi32_mask(a.v, b.v); }
  static inline VecInt even(VecInt a, VecInt b) {
    return {_mm512_permutex2var_epi32(a.v, Vec::even_lanes(), b.v)};
  }
  inline Vec gather(const float* p) const {
    reads_at(p, reinterpret_cast<const int32_t*>(&v), Vec::width);
    return {_mm512_i32gather_ps(v, p, 4)};
  }
  inline Vec gather(const int16_t* p, int32_t last) const {
    const __m512i from = _mm512_min_epi32(v, _mm512_set1_epi32(last - 1));
    reads_at(p, reinterpret_cast<const int32_t*>(&from), Vec::width);
    const __m512i pairs = _mm512_i32gather_epi32(from, p, 2);
    const __m512i upper = _mm512_slli_epi32(_mm512_sub_epi32(v, from), 4);
    const __m512i words = _mm512_slli_epi32(_mm512_srlv_epi32(pairs, upper), 16);
    return {_mm512_cvtepi32_ps(_mm512_srai_epi32(words, 16))};
  }
  struct Pairs {
    Vec first, second;
  };
  inline Pairs gather_pairs(const int16_t* p) const {
    reads_at(p, reinterpret_cast<const int32_t*>(&v), Vec::width);
    const __m512i pairs = _mm512_i32gather_epi32(v, p, 2);
    return {{_mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(pairs, 16), 16))},
            {_mm512_cvtepi32_ps(_mm512_srai_epi32(pairs, 16))}};
  }
  inline VecInt gather(const int32_t* p) const {
    reads_at(p, reinterpret_cast<const int32_t*>(&v), Vec::width);
    return {_mm512_i32gather_epi32(v, p, 4)};
  }
};
inline VecInt operator+(VecInt a, VecInt b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline VecInt operator*(VecInt a, VecInt b) { return {_mm512_mullo_epi32(a.v, b.v)}; }

struct VecBytes {
  static constexpr int64_t width = 64;
  __m512i v;
  static inline __mmask64 bytes_below(int64_t n) {
    return n < width ? _bzhi_u64(~uint64_t{0}, static_cast<uint32_t>(n)) : ~uint64_t{0};
  }
  static inline VecBytes broadcast(uint64_t eight) {
    return {_mm512_set1_epi64(static_cast<int64_t>(eight))};
  }
  static inline VecBytes load(const char* p) { return {_mm512_loadu_si512(p)}; }
  inline void store(char* p) const { _mm512_storeu_si512(p, v); }
  static inline VecBytes load(const char* p, int64_t n) {
    reads(p, n);
    return {_mm512_maskz_loadu_epi8(bytes_below(n), p)};
  }
  inline void store(char* p, int64_t n) const {
    writes(p, n);
    _mm512_mask_storeu_epi8(p, bytes_below(n), v);
  }
  inline void stream(char* p) const {
    writes(p, width);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), v);
  }
  static inline void stream_end() { _mm_sfence(); }
};

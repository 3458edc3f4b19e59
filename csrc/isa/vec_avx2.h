// Vec of eight floats in AVX2 and FMA. The meaning of each function is in vec_scalar.h.
#include "isa/masked.h"

struct Vec {
  using element = float;
  static constexpr int64_t width = 8;
  __m256 v;

  static inline __m256i lanes_below(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int32_t>(n)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }

  static inline Vec zero() { return {_mm256_setzero_ps()}; }
  static inline Vec broadcast(float x) { return {_mm256_set1_ps(x)}; }
  static inline Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static inline Vec load(const bfloat16* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
  }
  static inline Vec load(const int16_t* p) {
    const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(words))};
  }
  static inline Vec load(const float* p, int64_t n) {
    reads(p, n * int64_t{sizeof *p});
    return {_mm256_maskload_ps(p, lanes_below(n))};
  }
  template <class T>
  static inline Vec load(const T* p, int64_t n) {
    T buffer[width] = {};
    std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof *p);
    return load(buffer);
  }
  inline __m128i narrow() const {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(0x40));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i words = _mm256_blendv_epi8(rounded, quiet, nan);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(words, words), 0x08);
    return _mm256_castsi256_si128(packed);
  }
  inline void store(float* p) const { _mm256_storeu_ps(p, v); }
  inline void store(bfloat16* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow()); }
  inline __m128i to_int16() const {
    const __m256 in_range =
        _mm256_min_ps(_mm256_max_ps(v, _mm256_set1_ps(-32768.0f)), _mm256_set1_ps(32767.0f));
    const __m256i whole = _mm256_cvtps_epi32(in_range);
    return _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  }
  inline void store(int16_t* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_int16()); }
  inline void store(float* p, int64_t n) const {
    writes(p, n * int64_t{sizeof *p});
    _mm256_maskstore_ps(p, lanes_below(n), v);
  }
  template <class T>
  inline void store(T* p, int64_t n) const {
    T buffer[width];
    store(buffer);
    std::memcpy(p, buffer, static_cast<size_t>(n) * sizeof *p);
  }
  inline void stream(float* p) const {
    writes(p, width * int64_t{sizeof *p});
    _mm256_stream_ps(p, v);
  }
  inline void stream(bfloat16* p) const {
    writes(p, width * int64_t{sizeof *p});
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), narrow());
  }
  inline void stream(int16_t* p) const {
    writes(p, width * int64_t{sizeof *p});
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), to_int16());
  }

  static inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  static inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
  static inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
  static inline Vec power_of_two(Vec n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23))};
  }
  static inline Vec scale(Vec a, Vec n) { return {_mm256_mul_ps(a.v, power_of_two(n).v)}; }
  static inline __m256 greater_or_nan(Vec a, Vec b) {
    return _mm256_or_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ), _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  }
  static inline Vec select(__m256 mask, Vec yes, Vec no) { return {_mm256_blendv_ps(no.v, yes.v, mask)}; }
  using Mask = __m256;
  static inline Mask greater(Vec a, Vec b) { return _mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ); }
  static inline Mask equal(Vec a, Vec b) { return _mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ); }
  static inline Mask equal(const int64_t* p, int64_t n, int64_t value) {
    int64_t buffer[width];
    if (n < width) {
      std::fill_n(buffer, width, ~value);
      std::memcpy(buffer, p, static_cast<size_t>(n) * sizeof *p);
      p = buffer;
    }
    const __m256i all = _mm256_set1_epi64x(value);
    const __m256i low = _mm256_cmpeq_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), all);
    const __m256i high = _mm256_cmpeq_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 4)), all);
    return even({_mm256_castsi256_ps(low)}, {_mm256_castsi256_ps(high)}).v;
  }
  static inline Mask is_nan(Vec a) { return _mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q); }
  static inline Mask both(Mask a, Mask b) { return _mm256_and_ps(a, b); }
  static inline Mask either(Mask a, Mask b) { return _mm256_or_ps(a, b); }
  static inline Vec even(Vec a, Vec b) {
    const __m256d mixed = _mm256_castps_pd(_mm256_shuffle_ps(a.v, b.v, 0x88));
    return {_mm256_castpd_ps(_mm256_permute4x64_pd(mixed, 0xd8))};
  }
  static inline Vec pick(const int32_t* lanes, Vec a) {
    const __m256i lane = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes));
    return {_mm256_permutevar8x32_ps(a.v, lane)};
  }
  static inline Vec pick(const int32_t* lanes, Vec a, Vec b) {
    const __m256i lane = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes));
    const __m256 low = _mm256_permutevar8x32_ps(a.v, lane), high = _mm256_permutevar8x32_ps(b.v, lane);
    const __m256 either = _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(lane, 28)));
    return {_mm256_andnot_ps(_mm256_castsi256_ps(_mm256_srai_epi32(lane, 31)), either)};
  }
  static inline Vec gather(const float* p, const int32_t* lanes) {
    reads_at(p, lanes, width);
    return {_mm256_i32gather_ps(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes)), 4)};
  }
  static inline bool any_greater(Vec a, Vec b) {
    return _mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)) != 0;
  }
  inline float sum() const {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  inline float greatest() const {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }
};
inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }

struct VecInt {
  __m256i v;
  static inline VecInt broadcast(int32_t x) { return {_mm256_set1_epi32(x)}; }
  static inline VecInt load(const int32_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
  }
  inline void store(int32_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static inline VecInt select(__m256 mask, VecInt yes, VecInt no) {
    return {_mm256_blendv_epi8(no.v, yes.v, _mm256_castps_si256(mask))};
  }
  static inline VecInt iota() { return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)}; }
  static inline Vec::Mask less(VecInt a, VecInt b) {
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(b.v, a.v));
  }
  static inline VecInt even(VecInt a, VecInt b) {
    const Vec mixed = Vec::even({_mm256_castsi256_ps(a.v)}, {_mm256_castsi256_ps(b.v)});
    return {_mm256_castps_si256(mixed.v)};
  }
  inline Vec gather(const float* p) const {
    reads_at(p, reinterpret_cast<const int32_t*>(&v), Vec::width);
    return {_mm256_i32gather_ps(p, v, 4)};
  }
  inline Vec gather(const int16_t* p, int32_t last) const {
    const __m256i from = _mm256_min_epi32(v, _mm256_set1_epi32(last - 1));
    reads_at(p, reinterpret_cast<const int32_t*>(&from), Vec::width);
    const __m256i pairs = _mm256_i32gather_epi32(reinterpret_cast<const int*>(p), from, 2);
    const __m256i upper = _mm256_slli_epi32(_mm256_sub_epi32(v, from), 4);
    const __m256i words = _mm256_slli_epi32(_mm256_srlv_epi32(pairs, upper), 16);
    return {_mm256_cvtepi32_ps(_mm256_srai_epi32(words, 16))};
  }
  struct Pairs {
    Vec first, second;
  };
  inline Pairs gather_pairs(const int16_t* p) const {
    reads_at(p, reinterpret_cast<const int32_t*>(&v), Vec::width);
    const __m256i pairs = _mm256_i32gather_epi32(reinterpret_cast<const int*>(p), v, 2);
    return {{_mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(pairs, 16), 16))},
            {_mm256_cvtepi32_ps(_mm256_srai_epi32(pairs, 16))}};
  }
  inline VecInt gather(const int32_t* p) const {
    reads_at(p, reinterpret_cast<const int32_t*>(&v), Vec::width);
    return {_mm256_i32gather_epi32(p, v, 4)};
  }
};
inline VecInt operator+(VecInt a, VecInt b) { return {_mm256_add_epi32(a.v, b.v)}; }
inline VecInt operator*(VecInt a, VecInt b) { return {_mm256_mullo_epi32(a.v, b.v)}; }

struct VecBytes {
  static constexpr int64_t width = 32;
  __m256i v;
  static inline VecBytes broadcast(uint64_t eight) {
    return {_mm256_set1_epi64x(static_cast<int64_t>(eight))};
  }
  static inline VecBytes load(const char* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
  }
  inline void store(char* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static inline VecBytes load(const char* p, int64_t n) {
    char buffer[width] = {};
    std::memcpy(buffer, p, static_cast<size_t>(n));
    return load(buffer);
  }
  inline void store(char* p, int64_t n) const {
    char buffer[width];
    store(buffer);
    std::memcpy(p, buffer, static_cast<size_t>(n));
  }
  inline void stream(char* p) const {
    writes(p, width);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), v);
  }
  static inline void stream_end() { _mm_sfence(); }
};

// Vec of one float: the vocabulary every kernel body is written in. vec_avx2.h and vec_avx512.h say the same
// in their instructions. Include inside the target region and the level's namespace.
struct Vec {
  using element = float;
  static constexpr int64_t width = 1;
  float v;

  static inline Vec zero() { return {0.0f}; }
  static inline Vec broadcast(float x) { return {x}; }
  static inline Vec load(const float* p) { return {*p}; }
  static inline Vec load(const bfloat16* p) { return {to_float(*p)}; }
  static inline Vec load(const int16_t* p) { return {static_cast<float>(*p)}; }
  // The first n elements (0 <= n <= width); the others are zero and their memory is not touched.
  template <class T>
  static inline Vec load(const T* p, int64_t n) {
    return n > 0 ? load(p) : zero();
  }
  inline void store(float* p) const { *p = v; }
  inline void store(bfloat16* p) const { *p = to_bfloat16(v); }
  // Rounded to nearest even, saturated.
  inline void store(int16_t* p) const {
    *p = static_cast<int16_t>(__builtin_nearbyintf(min(max(*this, {-32768.0f}), {32767.0f}).v));
  }
  template <class T>
  inline void store(T* p, int64_t n) const {
    if (n > 0) store(p);
  }

  // To p, a multiple of the vector's size, past the caches where the level can; VecBytes::stream_end() before
  // others read it.
  template <class T>
  inline void stream(T* p) const {
    store(p);
  }

  // a * b + c
  static inline Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
  static inline Vec max(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }
  static inline Vec min(Vec a, Vec b) { return {a.v < b.v ? a.v : b.v}; }
  // 2^n for integers -126 <= n <= 127.
  static inline Vec power_of_two(Vec n) {
    const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n.v) + 127) << 23;
    Vec result;
    std::memcpy(&result.v, &bits, sizeof bits);
    return result;
  }
  // a * 2^n, as power_of_two.
  static inline Vec scale(Vec a, Vec n) { return {a.v * power_of_two(n).v}; }
  // Lanes where a > b, or where a is NaN.
  static inline bool greater_or_nan(Vec a, Vec b) { return a.v > b.v || a.v != a.v; }
  static inline Vec select(bool mask, Vec yes, Vec no) { return mask ? yes : no; }
  using Mask = bool;
  static inline Mask greater(Vec a, Vec b) { return a.v > b.v; }
  static inline Mask equal(Vec a, Vec b) { return a.v == b.v; }
  static inline Mask is_nan(Vec a) { return a.v != a.v; }
  static inline Mask both(Mask a, Mask b) { return a && b; }
  static inline Mask either(Mask a, Mask b) { return a || b; }
  // Lanes i < n where p[i] == value.
  static inline Mask equal(const int64_t* p, int64_t n, int64_t value) { return n > 0 && *p == value; }
  // Elements 0, 2, 4, ... of a followed by b.
  static inline Vec even(Vec a, Vec) { return a; }
  // Lane i is element lanes[i] of a.
  static inline Vec pick(const int32_t*, Vec a) { return a; }
  // Lane i is element lanes[i] of a followed by b, zero where lanes[i] is negative.
  static inline Vec pick(const int32_t* lanes, Vec a, Vec) { return *lanes < 0 ? zero() : a; }
  // Lane i is p[lanes[i]].
  static inline Vec gather(const float* p, const int32_t* lanes) { return {p[*lanes]}; }
  // Whether a > b in any lane; not where one of them is NaN.
  static inline bool any_greater(Vec a, Vec b) { return a.v > b.v; }
  // The sum of the lanes, and the greatest of them; any of them where one is NaN.
  inline float sum() const { return v; }
  inline float greatest() const { return v; }
};
inline Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
inline Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
inline Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
inline Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }

// As many int32 as Vec has floats.
struct VecInt {
  int32_t v;
  static inline VecInt broadcast(int32_t x) { return {x}; }
  static inline VecInt load(const int32_t* p) { return {*p}; }
  inline void store(int32_t* p) const { *p = v; }
  static inline VecInt select(bool mask, VecInt yes, VecInt no) { return mask ? yes : no; }
  // 0, 1, 2, ...
  static inline VecInt iota() { return {0}; }
  static inline Vec::Mask less(VecInt a, VecInt b) { return a.v < b.v; }
  static inline VecInt even(VecInt a, VecInt) { return a; }
  // p[v] in each lane.
  inline Vec gather(const float* p) const { return {p[v]}; }
  inline VecInt gather(const int32_t* p) const { return {p[v]}; }
  // The same of int16; p[last], where last > 0, is the last that may be read.
  inline Vec gather(const int16_t* p, int32_t) const { return {static_cast<float>(p[v])}; }
  struct Pairs {
    Vec first, second;
  };
  // p[v] and p[v + 1].
  inline Pairs gather_pairs(const int16_t* p) const {
    return {{static_cast<float>(p[v])}, {static_cast<float>(p[v + 1])}};
  }
};
inline VecInt operator+(VecInt a, VecInt b) { return {a.v + b.v}; }
inline VecInt operator*(VecInt a, VecInt b) { return {a.v * b.v}; }

// float64, for the reference path: only what the kernels with a float64 line need.
struct VecDouble {
  using element = double;
  static constexpr int64_t width = 1;
  double v;

  static inline VecDouble zero() { return {0.0}; }
  static inline VecDouble broadcast(double x) { return {x}; }
  static inline VecDouble load(const double* p) { return {*p}; }
  static inline VecDouble load(const double* p, int64_t n) { return n > 0 ? load(p) : zero(); }
  inline void store(double* p) const { *p = v; }
  inline void store(double* p, int64_t n) const {
    if (n > 0) store(p);
  }

  inline void stream(double* p) const { store(p); }

  static inline VecDouble fma(VecDouble a, VecDouble b, VecDouble c) { return {a.v * b.v + c.v}; }
  static inline VecDouble max(VecDouble a, VecDouble b) { return {a.v > b.v ? a.v : b.v}; }
  static inline VecDouble min(VecDouble a, VecDouble b) { return {a.v < b.v ? a.v : b.v}; }
  static inline VecDouble select(bool mask, VecDouble yes, VecDouble no) { return mask ? yes : no; }
  using Mask = bool;
  static inline bool greater(VecDouble a, VecDouble b) { return a.v > b.v; }
  static inline bool equal(VecDouble a, VecDouble b) { return a.v == b.v; }
  static inline bool is_nan(VecDouble a) { return a.v != a.v; }
  static inline bool both(bool a, bool b) { return a && b; }
  static inline bool either(bool a, bool b) { return a || b; }
  static inline bool any_greater(VecDouble a, VecDouble b) { return a.v > b.v; }
  static inline VecDouble pick(const int32_t*, VecDouble a) { return a; }
  static inline VecDouble pick(const int32_t* lanes, VecDouble a, VecDouble) {
    return *lanes < 0 ? zero() : a;
  }
  static inline VecDouble gather(const double* p, const int32_t* lanes) { return {p[*lanes]}; }
  inline double sum() const { return v; }
  inline double greatest() const { return v; }
};
inline VecDouble operator+(VecDouble a, VecDouble b) { return {a.v + b.v}; }
inline VecDouble operator-(VecDouble a, VecDouble b) { return {a.v - b.v}; }
inline VecDouble operator*(VecDouble a, VecDouble b) { return {a.v * b.v}; }
inline VecDouble operator/(VecDouble a, VecDouble b) { return {a.v / b.v}; }

// Bytes that are moved, whatever they mean.
struct VecBytes {
  static constexpr int64_t width = 8;
  uint64_t v;
  // Eight bytes over and over.
  static inline VecBytes broadcast(uint64_t eight) { return {eight}; }
  static inline VecBytes load(const char* p) {
    VecBytes x;
    std::memcpy(&x.v, p, sizeof x.v);
    return x;
  }
  inline void store(char* p) const { std::memcpy(p, &v, sizeof v); }
  // The first n bytes (0 <= n <= width); the memory of the others is not touched.
  static inline VecBytes load(const char* p, int64_t n) {
    VecBytes x{0};
    std::memcpy(&x.v, p, static_cast<size_t>(n));
    return x;
  }
  inline void store(char* p, int64_t n) const { std::memcpy(p, &v, static_cast<size_t>(n)); }
  // To p, a multiple of width, past the caches where the level can; stream_end() before others read it.
  inline void stream(char* p) const { store(p); }
  static inline void stream_end() {}
};

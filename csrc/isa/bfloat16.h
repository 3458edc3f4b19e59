// bfloat16 as storage: the upper half of a float32, rounded to nearest even.
#pragma once

#include <cstdint>
#include <cstring>

namespace volnet {

struct bfloat16 {
  uint16_t bits;
};

static inline float to_float(bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

static inline float to_float(float value) { return value; }
static inline double to_float(double value) { return value; }

static inline bfloat16 to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};  // keep NaN
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

template <class T, class A>
static inline T from_float(A value) {
  if constexpr (sizeof(T) == sizeof(bfloat16)) {
    return to_bfloat16(static_cast<float>(value));
  } else {
    return static_cast<T>(value);
  }
}

// The type in which values stored as T are computed.
template <class T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};
template <class T>
using compute_t = typename Compute<T>::type;

}  // namespace volnet

// The k greatest of many numbers, exactly, without sorting them. Numbers become keys whose order as integers
// is that of the numbers, NaN above all; the key of the k-th is found digit by digit, from the top, with a
// histogram of those that have the digits found so far. Of numbers that are equal to the k-th the first ones
// count, so the choice does not depend on how the work is cut.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "isa/dispatch.h"

namespace volnet::hardest {

inline constexpr int digit_bits = 11, digits = 1 << digit_bits;

template <class A>
using Key = std::conditional_t<sizeof(A) == 4, uint32_t, uint64_t>;

template <class A>
struct Numbers {
  const A* values;
  const uint8_t* candidates;  // where it is 0 the number does not take part; null: all do
};

// Keys that share what is above the digit at `shift`; at the top digit nothing is above.
template <class A>
struct Histogram {
  Numbers<A> numbers;
  int shift;
  bool top;
  Key<A> above;
  int64_t* counts;  // [digits], to which is added
};

// What lies on either side of the k-th key.
template <class A>
struct Sides {
  Numbers<A> numbers;
  Key<A> key;
  double sum;      // of the numbers above it
  int64_t equals;  // how many have it
};

template <class A>
struct Choice {
  Numbers<A> numbers;
  Key<A> key;
  int64_t equals;   // so many of those that have it are chosen
  uint8_t* chosen;  // 1 or 0
};

// Numbers [begin, end).
template <class Params>
using Kernel = void (*)(Params&, int64_t begin, int64_t end);

#define VOLNET_DECLARE(DTYPE, A)                                     \
  void histogram_##DTYPE(Histogram<A>&, int64_t begin, int64_t end); \
  void sides_##DTYPE(Sides<A>&, int64_t begin, int64_t end);         \
  void choose_##DTYPE(Choice<A>&, int64_t begin, int64_t end);
namespace scalar {
VOLNET_DECLARE(f32, float)
VOLNET_DECLARE(f64, double)
}  // namespace scalar
namespace avx2 {
VOLNET_DECLARE(f32, float)
}  // namespace avx2
namespace avx512 {
VOLNET_DECLARE(f32, float)
}  // namespace avx512
#undef VOLNET_DECLARE

extern const isa::KernelTable<Kernel<Histogram<float>>> histogram_f32;
extern const isa::KernelTable<Kernel<Sides<float>>> sides_f32;
extern const isa::KernelTable<Kernel<Choice<float>>> choose_f32;
extern const isa::KernelTable<Kernel<Histogram<double>>> histogram_f64;
extern const isa::KernelTable<Kernel<Sides<double>>> sides_f64;
extern const isa::KernelTable<Kernel<Choice<double>>> choose_f64;

}  // namespace volnet::hardest

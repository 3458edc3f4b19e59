// The smooth L1 distance of two tensors, number by number, and its gradient:
//
//   d = x - target;  y = d^2 / (2 beta) where |d| < beta, else |d| - beta / 2
//   dx = grad * d / beta where |d| < beta, else grad * the sign of d
//
// bfloat16 is computed in float32. Sums are kept in float for a thousand numbers at most in each lane, and in
// double beyond.
#pragma once

#include <cstdint>

#include "isa/dispatch.h"

namespace volnet::smooth_l1 {

struct Forward {
  const void *x, *target;
  double beta;  // at least 0
  double* sum;  // that of the numbers
};

struct Backward {
  const void *x, *target;
  void* dx;
  double beta, grad;
};

// Numbers [begin, end).
template <class Params>
using Kernel = void (*)(const Params&, int64_t begin, int64_t end);

#define VOLNET_DECLARE(DTYPE)                                       \
  void forward_##DTYPE(const Forward&, int64_t begin, int64_t end); \
  void backward_##DTYPE(const Backward&, int64_t begin, int64_t end);
namespace scalar {
VOLNET_DECLARE(f32)
VOLNET_DECLARE(bf16)
VOLNET_DECLARE(f64)
}  // namespace scalar
namespace avx2 {
VOLNET_DECLARE(f32)
VOLNET_DECLARE(bf16)
}  // namespace avx2
namespace avx512 {
VOLNET_DECLARE(f32)
VOLNET_DECLARE(bf16)
}  // namespace avx512
#undef VOLNET_DECLARE

extern const isa::KernelTable<Kernel<Forward>> forward_f32, forward_bf16, forward_f64;
extern const isa::KernelTable<Kernel<Backward>> backward_f32, backward_bf16, backward_f64;

}  // namespace volnet::smooth_l1

// IoU of every box of a with every box of b, and its gradient.
//
//   inter[i, j] = product over axes x of max(min(a[i].hi_x, b[j].hi_x) - max(a[i].lo_x, b[j].lo_x), 0)
//   y[i, j]     = inter / (volume_a[i] + volume_b[j] - inter),   0 where both volumes are 0
//
// The gradient follows the formula as torch does: where the two arguments of a maximum or minimum are equal
// each gets half, and max(x, 0) passes it for x >= 0. It is that with respect to a; that with respect to b is
// the same with the two exchanged, as y is symmetric.
//
// a is [n, 6] (d1, h1, w1, d2, h2, w2); b is a row for each of d1, h1, w1, d2, h2, w2, volume, [7, m_padded]
// with m_padded a multiple of 16, its padding zeros. y and grad are [n, m]. Nothing aliases, nothing need be
// aligned.
#pragma once

#include <cstdint>

#include "isa/dispatch.h"

namespace volnet::box_iou3d {

inline constexpr int64_t row_multiple = 16;

// a, b in the arithmetic's type (float32 for bfloat16), y, grad and grad_a in that of the storage.
struct Params {
  const void* a;
  const void* b;
  int64_t m, m_padded;
  void* y;
};

struct BackwardParams {
  const void* a;
  const void* b;
  int64_t m, m_padded;
  const void* grad;
  void* grad_a;  // [n, 6]
};

// Rows [begin, end) of y, or of grad_a.
using Forward = void (*)(const Params&, int64_t begin, int64_t end);
using Backward = void (*)(const BackwardParams&, int64_t begin, int64_t end);

#define VOLNET_DECLARE(DTYPE)                                      \
  void forward_##DTYPE(const Params&, int64_t begin, int64_t end); \
  void backward_##DTYPE(const BackwardParams&, int64_t begin, int64_t end);
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

extern const isa::KernelTable<Forward> forward_f32, forward_bf16, forward_f64;
extern const isa::KernelTable<Backward> backward_f32, backward_bf16, backward_f64;

}  // namespace volnet::box_iou3d

// Layer norm over rows, with what follows it in the same pass:
//
//   y[r, k] = activation((x[r, k] - mean[r]) * invstd[r] * weight[k] + bias[k] + residual[r, k])
//
// with the mean of row r and invstd = 1 / sqrt(variance + epsilon). x, grad, residual, y and dz_copy are
// [rows, columns], dense, of the storage type; they need no alignment. A row should fit a core's cache: it is
// read from there for its mean, for the deviations from it, and for the result.
//
// Backward computes the statistics again. With dz the gradient of what goes into the activation, xhat the
// normalized x, and g = dz * weight:
//
//   dx = (g - mean over the row of g - xhat * mean over the row of (g * xhat)) * invstd
//   sums = sum over the rows of dz * xhat [columns], of dz [columns]
#pragma once

#include <cstdint>

#include "isa/dispatch.h"
#include "kernels/activation_functions/activation.h"

namespace volnet::layer_norm {

struct Params {
  int64_t columns;
  const void *x, *grad, *residual;  // residual may be null
  void *y, *dz_copy;                // the result, or dx; dz_copy may be null
  const void *weight, *bias;        // [columns] of the compute type
  double epsilon;
  Activation activation;
  double negative_slope;
};

// sums: [2][columns] of the compute type, added to by backward, null forward.
using Kernel = void (*)(const Params&, int64_t row_begin, int64_t row_end, void* sums);

#define VOLNET_DECLARE(DTYPE)                                                     \
  void forward_##DTYPE(const Params&, int64_t row_begin, int64_t row_end, void*); \
  void backward_##DTYPE(const Params&, int64_t row_begin, int64_t row_end, void*);
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

extern const isa::KernelTable<Kernel> forward_f32, forward_bf16, forward_f64;
extern const isa::KernelTable<Kernel> backward_f32, backward_bf16, backward_f64;

}  // namespace volnet::layer_norm

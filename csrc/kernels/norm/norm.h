// Batch, instance and group norm, with what follows them in the same pass:
//
//   y = activation((x - mean) * invstd * weight + bias + residual),  invstd = 1 / sqrt(variance + epsilon)
//
// The three norms differ in the voxels that share a mean and a variance only, and the two layouts in how
// values lie; a kernel sees neither. It gets a piece: a run of values that lie dense, value i of channel i %
// channels. In channels last that is a range of voxels, in plain layout a part of one channel (channels = 1).
//
// Kernels read a piece as rows of `period` values, a multiple of the channels, so that column j of all rows
// is of one channel: a few channels, or one, fill whole vectors. The last row may be shorter, by whole
// voxels.
//
//   moments        results = mean [channels], sum of squared deviations [channels]
//   apply          y = activation(z), z = (x - center) * scale + shift + residual
//   gradient_sums  results = sum of dz [channels], sum of dz * (x - center) [channels]
//   gradient       y = dz * dz_scale + (x - center) * x_scale + constant, and dz itself to dz_copy
//
// where dz is the gradient of z, from `grad`, that of activation(z). `center` is the mean rounded to the
// compute type; what rounding took is part of `shift` and `constant`: x - center is exact where x is close to
// the mean, so that a large offset which all values share costs no accuracy.
//
// Statistics are made for runs of a few rows that stay in the first level of the cache: their mean, then the
// deviations from it, then both are merged in float64 (Chan, Golub, LeVeque, 1979).
//
// x, grad, residual, y and dz_copy are of the storage type and have the same layout; they need no alignment.
// y may be x, or grad. The coefficients are of the compute type, [channels].
#pragma once

#include <algorithm>
#include <cstdint>

#include "isa/dispatch.h"
#include "kernels/activation_functions/activation.h"

namespace volnet::norm {

struct Piece {
  int64_t channels, period, elements;
  const void *x, *grad, *residual;  // residual may be null
  void *y, *dz_copy;                // dz_copy may be null
  const void *center, *scale, *shift, *dz_scale, *x_scale, *constant;
  Activation activation;
  double negative_slope;
  bool stream;  // write past the caches, where y allows it
};

// The columns for a piece with these channels, of rows that all have `elements` values.
inline int64_t period_of(int64_t channels, int64_t elements) {
  constexpr int64_t widest = 16, wanted = 4 * widest, most = 1024;
  if (elements < wanted * widest && channels == 1) return widest;
  for (int64_t period = channels; period <= most; period += channels) {
    if (period >= wanted && period % widest == 0) return period;
  }
  return channels;
}

// Of one thread, for any kernel.
inline int64_t scratch_bytes(int64_t period) { return period * 6 * static_cast<int64_t>(sizeof(double)); }

// results: [2][channels]; null where the kernel has none.
using Kernel = void (*)(const Piece&, double* results, void* scratch);

#define VOLNET_DECLARE(DTYPE)                               \
  void moments_##DTYPE(const Piece&, double*, void*);       \
  void apply_##DTYPE(const Piece&, double*, void*);         \
  void gradient_sums_##DTYPE(const Piece&, double*, void*); \
  void gradient_##DTYPE(const Piece&, double*, void*);
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

extern const isa::KernelTable<Kernel> moments_f32, moments_bf16, moments_f64;
extern const isa::KernelTable<Kernel> apply_f32, apply_bf16, apply_f64;
extern const isa::KernelTable<Kernel> gradient_sums_f32, gradient_sums_bf16, gradient_sums_f64;
extern const isa::KernelTable<Kernel> gradient_f32, gradient_bf16, gradient_f64;

}  // namespace volnet::norm

// A volume on an oblique grid: y[o] = x(map * (o, 1)), o and the place in voxels (d, h, w).
//
// With one tap an axis the place's nearest voxel, with two the voxels around it weighted linearly, with four
// the cubic B-spline whose coefficients x holds. The volume ends half a voxel past the outer centres; beyond
// that y is pad_value. Taps outside are the voxel at the edge; a spline's are mirrored at it.
//
// Layouts: x [D, H, W] and y [OD, OH, OW] dense. No alignment is asked for; they must not alias. Work comes
// in rows of y, od * OH + oh. Within 64 places these are computed in float32, from a voxel nearby, and sums
// are too; int16 is rounded to nearest and saturates.
#pragma once

#include <cstdint>

#include "isa/dispatch.h"

namespace volnet::resample {

struct Params {
  const void* x;
  void* y;
  int64_t d, h, w;       // of x
  int64_t out_h, out_w;  // of y
  double map[3][4];
  int64_t taps;  // 1, 2 or 4
  float pad_value;
};

using Kernel = void (*)(const Params&, int64_t row_begin, int64_t row_end);

// The vector kernels take offsets into x as int32, and read the voxels of int16 volumes in pairs.
bool fits_vector(const Params& params);

// Named after the types of x and y.
#define VOLNET_DECLARE(LEVEL)                                      \
  namespace LEVEL {                                                \
  void i16_i16(const Params&, int64_t row_begin, int64_t row_end); \
  void i16_f32(const Params&, int64_t row_begin, int64_t row_end); \
  void f32_i16(const Params&, int64_t row_begin, int64_t row_end); \
  void f32_f32(const Params&, int64_t row_begin, int64_t row_end); \
  }
VOLNET_DECLARE(scalar)
VOLNET_DECLARE(avx2)
VOLNET_DECLARE(avx512)
#undef VOLNET_DECLARE

extern const isa::KernelTable<Kernel> i16_i16, i16_f32, f32_i16, f32_f32;

}  // namespace volnet::resample

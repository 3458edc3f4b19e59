// Maximum over windows of a volume, torch's max_pool3d, adaptive_max_pool3d and fractional_max_pool3d.
//
//   y[n, c, o] = max over taps j of x[n, c, o * stride - padding + j * dilation]   (o, j: d, h, w)
//
// Taps in the padding do not count. A window without any voxel, which dilation can make, gives -infinity.
// NaN wins over every number. indices[n, c, o], int64 or, where asked for and a plane allows it, int32, is
// the place of the maximum in its plane, (d * H + h) * W + w: the first in scan order (d, h, w) among equals,
// the last among NaNs, -1 for a window without a voxel.
//
// Layouts: x, y and indices all plain, [N, C, D, H, W] dense, or all channels last, [N, D, H, W, C] dense.
// No alignment is asked for; x, y and indices must not alias. indices may be null: then only y is made.
//
// Work comes in output rows, numbered ((n * C + c) * OD + od) * OH + oh in plain layout, where a row is [OW],
// and (n * OD + od) * OH + oh in channels last, where it is [OW, C]. Any set of rows can be made by itself.
//
// The vector kernels count places inside a window in int32, so they ask for fits_vector(). They make the
// plain layout separably: first the maximum over (d, h) of each column into a padded row of scratch, then
// across w.
//
// Backward: dx[n, c, i] = sum of dy[n, c, o] over the outputs o whose index is i, in the order of o.
//   gather: every voxel looks at all windows that reach to it, in rows (n * D + d) * H + h of [W, C], or
//     ((n * C + c) * D + d) * H + h of [W]. The way where few windows share a voxel. Plain rows are made of
//     rows of taps, which pooling/spread.h brings together.
//   scatter: a piece is a slab of dx, and adds what the outputs bring whose windows reach into it.
//   sparse: dx is zero already, and a piece is a range of voxels of y: each writes its sum where its index
//     says, if it is the first that names it. The way where outputs are few.
// In all, no two pieces write the same element.
#pragma once

#include <cstdint>

#include "isa/dispatch.h"
#include "kernels/pooling/spread.h"
#include "kernels/pooling/tables.h"

namespace volnet::max_pool3d {

struct Params {
  const void* x;
  void* y;
  void* indices;
  int64_t batch, channels;
  pooling::Axis d, h, w;
  bool narrow;  // indices are int32
};

struct BackwardParams {
  const void* dy;
  const void* indices;
  void* dx;
  int64_t channels;  // of a plane
  pooling::Axis d, h, w;
  bool narrow;  // indices are int32
  bool stream;  // gather: dx goes past the caches
};

// scratch: scratch_bytes(params), 64-byte aligned, of the calling thread.
using Forward = void (*)(const Params&, int64_t row_begin, int64_t row_end, void* scratch);
using pooling::widest;
int64_t padded_row(const Params& params);
int64_t padded_outputs(const Params& params);
int64_t scratch_bytes(const Params& params);
bool fits_vector(const Params& params);

// scratch: gather_scratch(params) floats of the calling thread, 64-byte aligned.
using Gather = void (*)(const BackwardParams&, int64_t row_begin, int64_t row_end, float* scratch);
int64_t gather_scratch(const BackwardParams& params);

using Sparse = void (*)(const BackwardParams&, int64_t voxel_begin, int64_t voxel_end);

// A plane is [D, H, W] of one n and c in plain layout (one channel), [D, H, W, C] of one n in channels last.
struct Slab {
  int64_t plane, d_begin, d_end, c_begin, c_end;
};

// scratch: the slab's sums in float32, for bfloat16 windows that overlap; else null.
using Scatter = void (*)(const BackwardParams&, const Slab&, float* scratch);

// Where the windows were pooled in parts: the maxima of those, of rows [planes, params.d.out * parts.d,
// params.h.out * parts.h, row]. indices is null where params.indices is.
using Join = void (*)(const Params&, const pooling::Parts&, const void* maxima, const void* indices,
                      int64_t row_elements, int64_t row_begin, int64_t row_end);

#define VOLNET_DECLARE(DTYPE)                                                                      \
  void forward_plain_##DTYPE(const Params&, int64_t row_begin, int64_t row_end, void*);            \
  void forward_channels_last_##DTYPE(const Params&, int64_t row_begin, int64_t row_end, void*);    \
  void backward_gather_##DTYPE(const BackwardParams&, int64_t row_begin, int64_t row_end, float*); \
  void backward_sparse_##DTYPE(const BackwardParams&, int64_t, int64_t);                           \
  void backward_scatter_##DTYPE(const BackwardParams&, const Slab&, float*);
namespace scalar {
VOLNET_DECLARE(f32)
VOLNET_DECLARE(bf16)
VOLNET_DECLARE(f64)
void join_f32(const Params&, const pooling::Parts&, const void*, const void*, int64_t, int64_t, int64_t);
void join_bf16(const Params&, const pooling::Parts&, const void*, const void*, int64_t, int64_t, int64_t);
void join_f64(const Params&, const pooling::Parts&, const void*, const void*, int64_t, int64_t, int64_t);
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

extern const isa::KernelTable<Forward> forward_plain_f32, forward_plain_bf16, forward_plain_f64;
extern const isa::KernelTable<Forward> forward_channels_last_f32, forward_channels_last_bf16,
    forward_channels_last_f64;
extern const isa::KernelTable<Gather> backward_gather_f32, backward_gather_bf16, backward_gather_f64;
extern const isa::KernelTable<Sparse> backward_sparse_f32, backward_sparse_bf16, backward_sparse_f64;
extern const isa::KernelTable<Scatter> backward_scatter_f32, backward_scatter_bf16, backward_scatter_f64;

}  // namespace volnet::max_pool3d

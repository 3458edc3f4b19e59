// Values put back where they were the maxima of windows, torch's max_unpool3d.
//
//   y[n, c, indices[n, c, o]] = x[n, c, o], and 0 elsewhere   (o: d, h, w)
//
// An index is a place in its plane of y, (d * H + h) * W + w. Where several name one place the last o in scan
// order wins.
//
// Layouts: x, indices and y all plain, [N, C, D, H, W] dense, or all channels last, [N, D, H, W, C] dense. A
// plane is [D, H, W] of one n and c in plain layout (one channel), [D, H, W, C] of one n in channels last. No
// alignment is asked for; nothing may alias.
//
// Work comes in slabs of y: a slab is cleared, and takes what it is to hold from a range of slices of x. No
// two slabs write the same element. Backward, dx[n, c, o] = dy[n, c, indices[n, c, o]], comes in voxels of x.
#pragma once

#include <cstdint>

#include "isa/dispatch.h"
#include "kernels/pooling/axis.h"

namespace volnet::max_unpool3d {

struct Params {
  const void* source;      // x, or dy in backward
  const int64_t* indices;  // as x
  void* result;            // y, or dx in backward
  int64_t channels;        // of a plane
  int64_t slices, slice;   // of a plane of x: how many, and the voxels of one
  int64_t y_slices, y_slice;
};

struct Slab {
  int64_t plane;
  pooling::Range d, c;     // what it covers of the plane of y
  pooling::Range sources;  // slices of x
};

// Returns how many elements of the sources the slab holds.
using Forward = int64_t (*)(const Params&, const Slab&);

// Makes dx of voxels [begin, end) of all planes. An index outside of the plane gives 0.
using Backward = void (*)(const Params&, int64_t begin, int64_t end);

#define VOLNET_DECLARE(DTYPE)                          \
  int64_t forward_##DTYPE(const Params&, const Slab&); \
  void backward_##DTYPE(const Params&, int64_t, int64_t);
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

}  // namespace volnet::max_unpool3d

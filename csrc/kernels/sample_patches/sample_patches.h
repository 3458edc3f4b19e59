// Patches of a volume around given centres, and the sum of patches back into the volume.
//
// Patch p covers the voxels [start, start + size) of every channel, start = centre - size / 2 (rounded down)
// on each axis, and pad_value where that lies outside the volume:
//
//   patches[p, c, i, j, k] = volume[c, start_d + i, start_h + j, start_w + k]   or   pad_value
//
// The backward pass is its transpose: every voxel of volume_grad is the sum of the gradients of the patch
// voxels that were read from it, in the order of the patches.
//
// The forward pass moves bytes, whatever they mean: element sizes of 1, 2, 4 and 8. The voxels of a row lie
// next to each other, the other strides of the volume are free; patches, grad and volume_grad are dense and
// plain. Any alignment of whole elements. Nothing may alias.
#pragma once

#include <algorithm>
#include <cstdint>

#include "isa/bfloat16.h"
#include "isa/dispatch.h"

namespace volnet::sample_patches {

struct Extent {
  int64_t d, h, w;  // voxels
};

struct Forward {
  const char* volume;
  int64_t channels;
  Extent extent;                         // of the volume
  int64_t stride_c, stride_d, stride_h;  // of the volume, bytes
  const int64_t* centers;                // [P, 3] (d, h, w)
  char* patches;                         // [P, C, size.d, size.h, size.w]
  Extent size;                           // of a patch
  int64_t element_size;                  // bytes
  uint64_t pad;                          // pad_value, repeated to fill eight bytes
  bool stream;                           // store past the caches: for results that do not fit into them
};

template <class T>
struct Backward {
  const T* grad;           // [P, C, size.d, size.h, size.w]
  const int64_t* centers;  // [P, 3]
  int64_t patches, channels;
  Extent extent, size;
  T* volume_grad;  // [C, extent.d, extent.h, extent.w]
};

// Where a patch begins on an axis of n voxels. Centres further out than a whole patch make the same empty
// patch as nearer ones, so they may be clamped, and no centre overflows.
static inline int64_t patch_start(int64_t center, int64_t size, int64_t n) {
  return std::clamp(center, -size, n + size) - size / 2;
}

// Slices [begin, end) of the P * C * size.d slices [size.h, size.w] of the result.
using ForwardFunction = void (*)(const Forward&, int64_t begin, int64_t end);

// One plane [extent.h, extent.w] of the channels * extent.d of volume_grad. Scratch: `covering` for one
// number a patch, `row` for extent.w sums.
template <class T>
using BackwardFunction = void (*)(const Backward<T>&, int64_t plane, int64_t* covering, compute_t<T>* row);

#define VOLNET_SAMPLE_PATCHES_KERNELS                                                      \
  void forward(const Forward&, int64_t begin, int64_t end);                                \
  void backward_f32(const Backward<float>&, int64_t plane, int64_t* covering, float* row); \
  void backward_bf16(const Backward<bfloat16>&, int64_t plane, int64_t* covering, float* row);
namespace scalar {
VOLNET_SAMPLE_PATCHES_KERNELS
void backward_f64(const Backward<double>&, int64_t plane, int64_t* covering, double* row);
}  // namespace scalar
namespace avx2 {
VOLNET_SAMPLE_PATCHES_KERNELS
}
namespace avx512 {
VOLNET_SAMPLE_PATCHES_KERNELS
}
#undef VOLNET_SAMPLE_PATCHES_KERNELS

extern const isa::KernelTable<ForwardFunction> forward_kernels;
extern const isa::KernelTable<BackwardFunction<float>> backward_f32_kernels;
extern const isa::KernelTable<BackwardFunction<bfloat16>> backward_bf16_kernels;
extern const isa::KernelTable<BackwardFunction<double>> backward_f64_kernels;

}  // namespace volnet::sample_patches

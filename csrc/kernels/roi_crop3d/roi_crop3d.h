// The gradient of crops of a volume. The crops themselves are made by the kernels of sample_patches: one
// patch each.
//
// Crop k of image n covers the voxels [start_k, start_k + size_k), and
//
//   dx[n, c, v] = sum of dy_k[c, v - start_k] over the crops k of image n that contain v, in the order of k
//
// Layouts as in roi_align3d.h: dx is [N, planes, D, H, W, inner], the gradient of a crop [planes, d, h, w,
// inner]. Any alignment; nothing aliases.
#pragma once

#include <algorithm>
#include <cstdint>

#include "isa/bfloat16.h"
#include "isa/dispatch.h"

namespace volnet::roi_crop3d {

template <class T>
struct Crop {
  const T* grad;
  int64_t start[3], size[3];
};

template <class T>
struct Backward {
  const Crop<T>* crops;  // of this image
  int64_t count;
  int64_t planes, inner, d, h, w;  // of the volume
  T* dx;
};

// dx[n, plane, d, :, :, :]. Scratch for bfloat16: sums [H * W * inner]. No two calls write the same element.
template <class T>
using BackwardFunction = void (*)(const Backward<T>&, int64_t n, int64_t plane, int64_t d,
                                  compute_t<T>* sums);

#define VOLNET_DECLARE(T, DTYPE) \
  void backward_##DTYPE(const Backward<T>&, int64_t n, int64_t plane, int64_t d, compute_t<T>* sums);
namespace scalar {
VOLNET_DECLARE(float, f32)
VOLNET_DECLARE(bfloat16, bf16)
VOLNET_DECLARE(double, f64)
}  // namespace scalar
namespace avx2 {
VOLNET_DECLARE(float, f32)
VOLNET_DECLARE(bfloat16, bf16)
}  // namespace avx2
namespace avx512 {
VOLNET_DECLARE(float, f32)
VOLNET_DECLARE(bfloat16, bf16)
}  // namespace avx512
#undef VOLNET_DECLARE

extern const isa::KernelTable<BackwardFunction<float>> backward_f32;
extern const isa::KernelTable<BackwardFunction<bfloat16>> backward_bf16;
extern const isa::KernelTable<BackwardFunction<double>> backward_f64;

}  // namespace volnet::roi_crop3d

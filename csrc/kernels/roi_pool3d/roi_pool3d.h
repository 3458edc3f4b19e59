// Maxima in the bins of regions, torchvision's roi_pool in three dimensions.
//
// On each axis a region covers the voxels [start, start + size), start = round(lo * scale), size =
// max(round(hi * scale) - start + 1, 1): both rounded corners belong to it. round() takes halves away from
// zero. Bin i of `bins` covers
//
//   [start + floor(i * size / bins), start + ceil((i + 1) * size / bins))    cut to the volume
//
// y is the largest value in the bin, and argmax its place in the plane, (d * H + h) * W + w: the first in
// scan order among equals. NaN is larger than every number. A bin without voxels has y = 0 and argmax = -1.
//
// Layouts as in roi_align3d.h: an image is `planes` planes [D, H, W, inner], a result `planes` of [PD, PH,
// PW, inner]. Any alignment; nothing aliases. W and the voxels of a bin in a plane of [D, H] are less than
// 2^31.
//
// Backward: dx[n, c, v] = sum of dy[k, c, o] over the outputs o whose argmax is v, in the order of k, then o.
#pragma once

#include <algorithm>
#include <cstdint>

#include "isa/bfloat16.h"
#include "isa/dispatch.h"

namespace volnet::roi_pool3d {

struct Range {
  int64_t begin, end;  // voxels; empty where equal
};

Range bin_range(double lo, double hi, double scale, int64_t bin, int64_t bins, int64_t extent);

// The bins of one region.
struct Region {
  const Range *d, *h, *w;
  Range w_all;  // what the bins of w cover together
};

struct Sizes {
  int64_t planes, inner;
  int64_t d, h, w;     // voxels
  int64_t pd, ph, pw;  // bins
};

// Scratch is read a vector past its end.
inline constexpr int64_t slack = 16;

template <class T>
struct Forward {
  const T* image;   // [planes, D, H, W, inner]
  T* y;             // [planes, PD, PH, PW, inner]
  int64_t* argmax;  // like y
  Sizes sizes;
  Region region;
  int64_t* taps;          // scratch: PH * most_taps
  int64_t* tap_counts;    // scratch: PH
  int64_t most_taps;      // voxels of a bin in a plane of [D, H]
  compute_t<T>* largest;  // scratch: w_all * inner + slack
  int32_t* which;         // scratch: w_all * inner + slack
};

// The bins [pd, :, :] of one region.
template <class T>
using ForwardFunction = void (*)(const Forward<T>&, int64_t pd);

template <class T>
struct Backward {
  const T* grad;          // [K, planes, PD, PH, PW, inner]
  const int64_t* argmax;  // like grad
  T* dx;                  // [N, planes, D, H, W, inner]
  Sizes sizes;
  const Region* regions;  // [K]
  const int64_t* rows;    // the regions of this image, in the order in which they are added
  int64_t count;
  compute_t<T>* sums;  // scratch for bfloat16: as many as the slab has elements
};

// dx[n, plane, d_begin .. d_end, :, :, c_begin .. c_end]; c counts in inner.
struct Slab {
  int64_t n, plane, d_begin, d_end, c_begin, c_end;
};

// No two slabs write the same element.
template <class T>
using BackwardFunction = void (*)(const Backward<T>&, const Slab&);

#define VOLNET_DECLARE(T, DTYPE) void forward_##DTYPE(const Forward<T>&, int64_t pd);
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

extern const isa::KernelTable<ForwardFunction<float>> forward_f32;
extern const isa::KernelTable<ForwardFunction<bfloat16>> forward_bf16;
extern const isa::KernelTable<ForwardFunction<double>> forward_f64;
// One level: it scatters single values.
extern const isa::KernelTable<BackwardFunction<float>> backward_f32;
extern const isa::KernelTable<BackwardFunction<bfloat16>> backward_bf16;
extern const isa::KernelTable<BackwardFunction<double>> backward_f64;

}  // namespace volnet::roi_pool3d

// Averages of trilinear samples in the bins of regions, torchvision's roi_align in three dimensions.
//
// On each axis a region [lo, hi) of the volume is, after scaling, [start, start + size) with start = lo *
// scale - 1/2 if aligned, else start = lo * scale and size at least 1. It has `bins` bins of size / bins
// voxels, and a bin has `samples` samples in the middle of equal parts; samples is the sampling ratio if that
// is positive, else size / bins rounded up. A sample at position p is
//
//   0                                       if p < -1 or p > extent
//   x[v] * (1 - f) + x[v + 1] * f           v = floor(max(p, 0)), f = max(p, 0) - v
//   x[extent - 1]                           if v >= extent - 1
//
// and a trilinear sample the same on all three axes, 0 if it is so on one of them. A bin without samples,
// which a region of size 0 may have, is 0.
//
// The samples of a bin lie on a grid, so their average is
//
//   y[k, c, o] = sum over voxels v of weight_d[o_d][v_d] * weight_h[o_h][v_h] * weight_w[o_w][v_w] * x[n_k,
//   c, v]
//
// where the weights of a bin on an axis are those of its samples, summed by voxel and divided by their
// number: Bins. They are found in float64 and rounded once. Voxels of weight 0 are not read on the axes d and
// h.
//
// Layouts: an image is `planes` planes [D, H, W, inner], a result `planes` of [PD, PH, PW, inner]: the
// channels are the planes in plain layout, and inner in channels_last. Any alignment; nothing aliases.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "isa/bfloat16.h"
#include "isa/dispatch.h"

namespace volnet::roi_align3d {

struct Axis {
  double start, size;  // voxels
  int64_t bins;
  double samples;  // in a bin
  int64_t extent;  // of the volume, voxels
};

Axis make_axis(double lo, double hi, double scale, int64_t sampling_ratio, bool aligned, int64_t bins,
               int64_t extent);

// What one bin reads on one axis: voxels [first, first + count) with weights.
template <class A>
struct Bin {
  int64_t first, count;
  const A* weights;
};

struct Range {
  int64_t first, count;
};
Range bin_range(const Axis& axis, int64_t bin);
// weights: [range.count]
template <class A>
void bin_weights(const Axis& axis, int64_t bin, const Range& range, A* weights);

// One region on one axis: its bins, and the voxels [begin, end) that they read.
template <class A>
struct Bins {
  const Bin<A>* bin;
  int64_t begin, end;
};

template <class A>
struct Region {
  Bins<A> d, h, w;
};

struct Sizes {
  int64_t planes, inner;
  int64_t d, h, w;     // voxels
  int64_t pd, ph, pw;  // bins
};

// Scratch is read a vector past its end.
inline constexpr int64_t slack = 16;

template <class A>
struct Tap {
  int64_t offset;
  A weight;
};

template <class T>
struct Forward {
  const T* image;  // [planes, D, H, W, inner]
  T* y;            // [planes, PD, PH, PW, inner]
  Sizes sizes;
  Region<compute_t<T>> region;
  Tap<compute_t<T>>* taps;  // scratch: PH * most_taps
  int64_t* tap_counts;      // scratch: PH
  int64_t most_taps;        // voxels of a bin over d, times those over h
  compute_t<T>* row;        // scratch: (w.end - w.begin) * inner + slack
};

// The bins [pd, :, :] of one region.
template <class T>
using ForwardFunction = void (*)(const Forward<T>&, int64_t pd);

template <class T>
struct Backward {
  const T* grad;  // [K, planes, PD, PH, PW, inner]
  T* dx;          // [N, planes, D, H, W, inner]
  Sizes sizes;
  const Region<compute_t<T>>* regions;  // [K]
  const int64_t* rows;                  // the regions of this image, in the order in which they are added
  int64_t count;
  compute_t<T>* bins;  // scratch: PH * PW * inner + slack
  compute_t<T>* wide;  // scratch: PH * (the largest w.end - w.begin) * inner + slack
  compute_t<T>* sums;  // scratch for bfloat16: H * W * inner + slack
};

// dx[n, plane, d, :, :, :]. No two calls write the same element.
template <class T>
using BackwardFunction = void (*)(const Backward<T>&, int64_t n, int64_t plane, int64_t d);

#define VOLNET_DECLARE(T, DTYPE)                       \
  void forward_##DTYPE(const Forward<T>&, int64_t pd); \
  void backward_##DTYPE(const Backward<T>&, int64_t n, int64_t plane, int64_t d);
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
extern const isa::KernelTable<BackwardFunction<float>> backward_f32;
extern const isa::KernelTable<BackwardFunction<bfloat16>> backward_bf16;
extern const isa::KernelTable<BackwardFunction<double>> backward_f64;

}  // namespace volnet::roi_align3d

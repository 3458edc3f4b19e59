// Runs the separable kernels over a volume: what interpolate, gaussian_filter3d and resample have in common.
#pragma once

#include "kernels/separable/maps.h"
#include "ops/tensors.h"

namespace volnet::separable {

template <class A>
struct Maps {
  Table<A> d, h, w;
};

// A dense volume [N, C, D, H, W], and where its images, planes and rows of the result begin, in elements.
struct Volume {
  const void* source;
  void* result;
  int64_t batch, channels;
  int64_t image_step, plane_step, row_step;
};

// y = Wd Wh Ww x, from S to R, of the types that a kernel has been made for.
template <class S, class R, class A = compute_t<S>>
void run(const Volume& volume, Layout5 layout, const Maps<A>& maps, const char* op);

// The same for whole tensors: x [N, C, D, H, W] in either layout, and the result in `layout`.
template <class T>
Tensor apply(const Tensor& x, Layout5 layout, const Maps<compute_t<T>>& maps, const char* op);

}  // namespace volnet::separable

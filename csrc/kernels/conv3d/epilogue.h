// What follows a convolution while its sums are still at hand:
//
//   y[n, o, k] = activation(sum[n, o, k] + bias[k] + residual[n, o, k])
//
// and, for a norm that comes next, the mean and the squared deviations of y over the voxels of each image and
// channel. y is rounded to its dtype once, and the statistics are those of the rounded values.
//
// A kernel computes a block of sums into a small buffer and calls finish() of epilogue_body.h on it. Where
// empty() and no bias is left to add, it may store by itself.
//
// Statistics are gathered in slots, one for every part of an image that a piece of work writes, each channel
// by itself: [N][slots][4][groups * filters] of the compute type, zero at first, the four being the number of
// values, a pivot (the first value), the mean of (y - pivot) and the sum of squared deviations from the mean.
// A large offset that all values share costs no accuracy. Parts must not depend on the number of threads.
#pragma once

#include <cstdint>

#include "kernels/activation_functions/activation.h"

namespace volnet::conv3d {

struct Epilogue {
  Activation activation = Activation::none;
  const void* slopes = nullptr;    // of prelu: [groups * filters] in the compute type
  const void* residual = nullptr;  // like y, or null
  void* mean = nullptr;            // [N, groups * filters] in the compute type, where statistics are wanted
  void* variance = nullptr;

  int64_t slots = 0;           // of an image, from the planner
  void* statistics = nullptr;  // what pieces gather; who runs them makes mean and variance of it

  bool gathers() const { return mean != nullptr; }
  bool empty() const { return activation == Activation::none && residual == nullptr && !gathers(); }
};

// A block of sums: filters [filter, filter + filters), numbered over all groups, of `voxels` output voxels of
// one image. Sum (v, i) is values[v * step + i], in the compute type; it becomes y[offset + v * y_step + i].
struct Sums {
  const void* values;
  int64_t step, voxels;
  int64_t filter, filters;
  void* y;  // all of it
  int64_t offset, y_step;
  int64_t slot;           // image * slots + slot
  int64_t total_filters;  // groups * filters
  bool stream = false;    // write y past the caches: whole vectors of filters and an aligned y
};

}  // namespace volnet::conv3d

// The maps of an axis that the operators are made of, and their transposes.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/separable/separable.h"

namespace volnet::separable {

// A map with its memory.
template <class A>
class Table {
 public:
  struct Tap {
    int64_t index;
    A weight;
  };

  // Outputs are added one after the other, then finished.
  explicit Table(int64_t in) : in_(in) {}
  void add(const std::vector<Tap>& taps);
  void finish();  // after the last

  Map<A> map() const;
  Table transposed() const;

 private:
  int64_t in_, taps_ = 0;
  std::vector<std::vector<Tap>> rows_;  // until finish()
  std::vector<int64_t> count_, index_;
  std::vector<A> weight_;
};

// What torch's interpolate does on an axis of in voxels with A as the type of its index arithmetic. scale:
// the caller's scale_factor, where it is to be used instead of out / in.
template <class A>
struct Interpolation {
  int64_t in, out;
  std::optional<double> scale;
};
// Torch's kernel for channels last computes the nearest index otherwise than its plain one, and rounding
// makes them differ at a few sizes.
template <class A>
Table<A> nearest(const Interpolation<A>& axis, bool exact, bool channels_last);
template <class A>
Table<A> linear(const Interpolation<A>& axis, bool align_corners);
template <class A>
Table<A> area(const Interpolation<A>& axis);

// Convolution with a kernel of 2 * radius + 1 weights; scipy.ndimage's boundaries.
enum class Boundary { reflect, constant, nearest, mirror, wrap };
template <class A>
Table<A> convolution(int64_t in, const std::vector<double>& kernel, Boundary boundary);

// Samples at start + step * o for o in [first, last), in voxels of the input, which is the edge's value where
// that is outside. cubic: the cubic spline through the voxels that mirrors them at the first and the last.
enum class Sampling { nearest, linear, cubic };
template <class A>
Table<A> sampled(int64_t in, int64_t first, int64_t last, double start, double step, Sampling sampling);

// From voxels to the coefficients of that spline.
template <class A>
Table<A> spline_coefficients(int64_t in);

}  // namespace volnet::separable

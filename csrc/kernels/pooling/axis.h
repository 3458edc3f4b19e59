// One axis of a pooling window, as every pooling operator sees it.
//
// Output o looks at the voxels o * stride - padding + j * dilation for the taps j in [0, kernel); those
// outside of [0, in) are padding.
#pragma once

#include <algorithm>
#include <cstdint>

namespace volnet::pooling {

struct Axis {
  int64_t in, out;  // voxels
  int64_t kernel, stride, padding, dilation;
};

struct Range {
  int64_t begin, end;
  bool empty() const { return begin >= end; }
};

// Voxels from the first tap to the last.
static inline int64_t span(const Axis& a) { return (a.kernel - 1) * a.dilation; }

static inline int64_t position(const Axis& a, int64_t output, int64_t tap) {
  return output * a.stride - a.padding + tap * a.dilation;
}

// The taps of an output that are not padding.
static inline Range taps_inside(const Axis& a, int64_t output) {
  const int64_t start = output * a.stride - a.padding;
  if (start >= 0 && start + span(a) < a.in) return {0, a.kernel};
  const int64_t begin = start >= 0 ? 0 : (-start + a.dilation - 1) / a.dilation;
  const int64_t end = start >= a.in ? 0 : std::min(a.kernel, (a.in - 1 - start) / a.dilation + 1);
  return {begin, std::max(begin, end)};
}

// The outputs whose windows, padding included, reach into the voxels [begin, end).
static inline Range outputs_touching(const Axis& a, int64_t begin, int64_t end) {
  const int64_t before = begin + a.padding - span(a);
  const int64_t first = before <= 0 ? 0 : (before + a.stride - 1) / a.stride;
  const int64_t last = std::min(a.out, (end - 1 + a.padding) / a.stride + 1);
  return {first, std::max(first, last)};
}

// Most outputs whose windows reach to one voxel.
static inline int64_t most_outputs(const Axis& a) { return std::min(a.out, span(a) / a.stride + 1); }

}  // namespace volnet::pooling

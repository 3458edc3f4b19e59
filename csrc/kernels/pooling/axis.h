// One axis of a pooling window, as every pooling operator sees it.
//
// Output o looks at the voxels o * stride - padding + j * dilation for the taps j in [0, kernel); those
// outside of [0, in) are padding. Where windows keep no stride, as in adaptive pooling, they come in tables,
// and output o looks at all voxels of windows[o].
#pragma once

#include <algorithm>
#include <cstdint>

namespace volnet::pooling {

struct Range {
  int64_t begin, end;
  bool empty() const { return begin >= end; }
  int64_t size() const { return end - begin; }
};

struct Axis {
  int64_t in, out;  // voxels
  // With tables: the widest window, about its stride, 0 and 1.
  int64_t kernel, stride, padding, dilation;
  const Range* windows = nullptr;   // [out], their begins and ends never descend
  const Range* touching = nullptr;  // [in], the outputs whose windows hold a voxel; also without the other
};

// Voxels from the first tap to the last.
static inline int64_t span(const Axis& a) { return (a.kernel - 1) * a.dilation; }

static inline int64_t position(const Axis& a, int64_t output, int64_t tap) {
  return a.windows ? a.windows[output].begin + tap : output * a.stride - a.padding + tap * a.dilation;
}

// The taps of an output that are not padding.
static inline Range taps_inside(const Axis& a, int64_t output) {
  if (a.windows) return {0, a.windows[output].size()};
  const int64_t start = output * a.stride - a.padding;
  if (start >= 0 && start + span(a) < a.in) return {0, a.kernel};
  const int64_t begin = start >= 0 ? 0 : (-start + a.dilation - 1) / a.dilation;
  const int64_t end = start >= a.in ? 0 : std::min(a.kernel, (a.in - 1 - start) / a.dilation + 1);
  return {begin, std::max(begin, end)};
}

// The outputs whose windows, padding included, reach into the voxels [begin, end).
static inline Range outputs_touching(const Axis& a, int64_t begin, int64_t end) {
  if (a.touching) return {a.touching[begin].begin, a.touching[end - 1].end};
  const int64_t before = begin + a.padding - span(a);
  const int64_t first = before <= 0 ? 0 : (before + a.stride - 1) / a.stride;
  const int64_t last = std::min(a.out, (end - 1 + a.padding) / a.stride + 1);
  return {first, std::max(first, last)};
}

// Most outputs whose windows reach to one voxel.
static inline int64_t most_outputs(const Axis& a) {
  if (a.windows && a.touching) {
    int64_t most = 0;
    for (int64_t i = 0; i < a.in; ++i) most = std::max(most, a.touching[i].size());
    return most;
  }
  return std::min(a.out, span(a) / a.stride + 1);
}

}  // namespace volnet::pooling

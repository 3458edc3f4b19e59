// Axes whose windows are in tables: those of adaptive and of fractional pooling, and parts of large windows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/pooling/axis.h"

namespace volnet::pooling {

// The tables live as long as this does.
class TableAxis {
 public:
  // windows: begins and ends that never descend.
  TableAxis(int64_t in, std::vector<Range> windows)
      : windows_(std::move(windows)), touching_(static_cast<size_t>(in)) {
    const auto out = static_cast<int64_t>(windows_.size());
    int64_t widest = 1, first = 0, last = 0;
    for (const Range& window : windows_) widest = std::max(widest, window.size());
    for (int64_t i = 0; i < in; ++i) {
      while (first < out && windows_[static_cast<size_t>(first)].end <= i) ++first;
      while (last < out && windows_[static_cast<size_t>(last)].begin <= i) ++last;
      touching_[static_cast<size_t>(i)] = {first, std::max(first, last)};
    }
    axis_ = {in, out, widest,          std::max<int64_t>(in / std::max<int64_t>(out, 1), 1),
             0,  1,   windows_.data(), touching_.data()};
  }
  TableAxis(const TableAxis&) = delete;
  TableAxis& operator=(const TableAxis&) = delete;

  operator const Axis&() const { return axis_; }

 private:
  std::vector<Range> windows_, touching_;
  Axis axis_;
};

// An axis without tables, with one of the outputs that hold a voxel: for loops that would divide by the
// stride for every row. Not for axes so long that the table would count.
class TouchingAxis {
 public:
  explicit TouchingAxis(const Axis& axis) : axis_(axis) {
    constexpr int64_t longest = int64_t{1} << 20;
    if (axis.touching || axis.in > longest) return;
    touching_.resize(static_cast<size_t>(axis.in));
    for (int64_t i = 0; i < axis.in; ++i)
      touching_[static_cast<size_t>(i)] = outputs_touching(axis, i, i + 1);
    axis_.touching = touching_.data();
  }
  TouchingAxis(const TouchingAxis&) = delete;
  TouchingAxis& operator=(const TouchingAxis&) = delete;

  operator const Axis&() const { return axis_; }

 private:
  std::vector<Range> touching_;
  Axis axis_;
};

// torch's adaptive pooling: the windows share the axis out as evenly as whole voxels allow.
inline std::vector<Range> adaptive_windows(int64_t in, int64_t out) {
  std::vector<Range> windows(static_cast<size_t>(out));
  for (int64_t o = 0; o < out; ++o) {
    windows[static_cast<size_t>(o)] = {o * in / out, ((o + 1) * in + out - 1) / out};
  }
  return windows;
}

// How many parts each window falls into that is made in parts, because it is larger than a piece of work: the
// parts are pooled side by side, and then joined.
struct Parts {
  int64_t d, h;
  int64_t count() const { return d * h; }
};

// The windows of an axis with `parts` outputs for each output of `axis`: together they are its window, voxel
// after voxel, and some may be empty. With as many parts as taps, each has one at most.
inline std::vector<Range> windows_in_parts(const Axis& axis, int64_t parts) {
  std::vector<Range> result;
  result.reserve(static_cast<size_t>(axis.out * parts));
  for (int64_t o = 0; o < axis.out; ++o) {
    const Range taps = taps_inside(axis, o);
    const int64_t first = position(axis, o, taps.begin);
    for (int64_t part = 0; part < parts; ++part) {
      result.push_back({first + taps.size() * part / parts, first + taps.size() * (part + 1) / parts});
    }
  }
  return result;
}

// The parts for windows of which one row of the result reads `row_reads` elements: of the h axis only where
// each of d is a single slice, so that the parts are in scan order. Dilated windows stay whole.
inline Parts parts_for(const Axis& d, const Axis& h, int64_t row_reads, int64_t piece_elements) {
  if (row_reads < 2 * piece_elements || d.dilation > 1 || h.dilation > 1) return {1, 1};
  const int64_t wanted = (row_reads + piece_elements - 1) / piece_elements;
  const int64_t taps_d = std::min(d.kernel, d.in), taps_h = std::min(h.kernel, h.in);
  if (wanted <= taps_d) return {wanted, 1};
  return {taps_d, std::min(taps_h, (wanted + taps_d - 1) / taps_d)};
}

// The axis of the parts; windows: windows_in_parts(axis, parts).
inline Axis axis_in_parts(const Axis& axis, const std::vector<Range>& windows) {
  return {axis.in, static_cast<int64_t>(windows.size()), axis.kernel, 1, 0, 1, windows.data()};
}

// Among the rows of a pooled plane in parts, where those of row (od, oh) are: part (d, h) is row
// (first + d * step_d + h).
struct PartRows {
  int64_t first, step_d;
};
inline PartRows rows_of_parts(const Axis& h, const Parts& parts, int64_t od, int64_t oh) {
  return {(od * parts.d * h.out + oh) * parts.h, h.out * parts.h};
}

}  // namespace volnet::pooling

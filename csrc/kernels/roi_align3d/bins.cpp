#include <cmath>

#include "kernels/roi_align3d/roi_align3d.h"

namespace volnet::roi_align3d {
namespace {

double position(const Axis& axis, int64_t bin, int64_t sample) {
  const double bin_size = axis.size / static_cast<double>(axis.bins);
  return axis.start + static_cast<double>(bin) * bin_size +
         (static_cast<double>(sample) + 0.5) * bin_size / axis.samples;
}

bool below(const Axis&, double p) { return p < -1; }
bool above(const Axis& axis, double p) { return p > static_cast<double>(axis.extent); }

// The samples [begin, end) of a bin that are not 0 for being outside. Positions never decrease, so they are
// found from an estimate; the bins of a region that reaches far out of the volume may have very many samples.
struct Samples {
  int64_t begin, end;
};

Samples inside(const Axis& axis, int64_t bin) {
  const auto count = static_cast<int64_t>(axis.samples);
  if (count == 0 || axis.extent == 0) return {0, 0};
  const double first = position(axis, bin, 0);
  const double step = axis.size / static_cast<double>(axis.bins) / axis.samples;
  const auto estimate = [&](double p) {
    const double i = step > 0 ? std::floor((p - first) / step) : 0.0;
    return static_cast<int64_t>(std::clamp(i, 0.0, static_cast<double>(count)));
  };
  int64_t begin = estimate(-1.0);
  while (begin > 0 && !below(axis, position(axis, bin, begin - 1))) --begin;
  while (begin < count && below(axis, position(axis, bin, begin))) ++begin;
  int64_t end = step > 0 ? estimate(static_cast<double>(axis.extent)) : count;
  while (end < count && !above(axis, position(axis, bin, end))) ++end;
  while (end > begin && above(axis, position(axis, bin, end - 1))) --end;
  return {begin, end};
}

struct Linear {
  int64_t voxel;
  double fraction;  // of voxel + 1; 0 at the last voxel
};

Linear interpolate(const Axis& axis, double p) {
  p = std::max(p, 0.0);
  const auto voxel = static_cast<int64_t>(p);
  if (voxel >= axis.extent - 1) return {axis.extent - 1, 0.0};
  return {voxel, p - static_cast<double>(voxel)};
}

}  // namespace

Axis make_axis(double lo, double hi, double scale, int64_t sampling_ratio, bool aligned, int64_t bins,
               int64_t extent) {
  const double shift = aligned ? 0.5 : 0.0, start = lo * scale - shift;
  double size = hi * scale - shift - start;
  if (!aligned) size = std::max(size, 1.0);
  const double samples =
      sampling_ratio > 0 ? static_cast<double>(sampling_ratio) : std::ceil(size / static_cast<double>(bins));
  return {start, size, bins, samples, extent};
}

Range bin_range(const Axis& axis, int64_t bin) {
  const Samples samples = inside(axis, bin);
  if (samples.begin == samples.end) return {0, 0};
  const Linear first = interpolate(axis, position(axis, bin, samples.begin));
  const Linear last = interpolate(axis, position(axis, bin, samples.end - 1));
  return {first.voxel, last.voxel + (last.fraction > 0 ? 2 : 1) - first.voxel};
}

template <class A>
void bin_weights(const Axis& axis, int64_t bin, const Range& range, A* weights) {
  std::vector<double> sums(static_cast<size_t>(range.count), 0.0);
  const Samples samples = inside(axis, bin);
  for (int64_t i = samples.begin; i < samples.end; ++i) {
    const Linear at = interpolate(axis, position(axis, bin, i));
    sums[at.voxel - range.first] += 1 - at.fraction;
    if (at.fraction > 0) sums[at.voxel + 1 - range.first] += at.fraction;
  }
  for (int64_t v = 0; v < range.count; ++v) weights[v] = static_cast<A>(sums[v] / axis.samples);
}

template void bin_weights(const Axis&, int64_t, const Range&, float*);
template void bin_weights(const Axis&, int64_t, const Range&, double*);

}  // namespace volnet::roi_align3d

#include <cmath>
#include <type_traits>

#include "kernels/roi_pool3d/roi_pool3d.h"

namespace volnet::roi_pool3d {

Range bin_range(double lo, double hi, double scale, int64_t bin, int64_t bins, int64_t extent) {
  const auto start = static_cast<int64_t>(std::round(lo * scale));
  const int64_t size = std::max<int64_t>(static_cast<int64_t>(std::round(hi * scale)) - start + 1, 1);
  const auto cut = [&](int64_t voxel) { return std::clamp<int64_t>(start + voxel, 0, extent); };
  return {cut(bin * size / bins), cut(((bin + 1) * size + bins - 1) / bins)};
}

namespace {

template <class T>
void backward(const Backward<T>& b, const Slab& slab) {
  using A = compute_t<T>;
  const Sizes& s = b.sizes;
  const int64_t slice = s.h * s.w, first = slab.d_begin * slice, last = slab.d_end * slice;
  const int64_t voxels = last - first, channels = slab.c_end - slab.c_begin;
  T* dx = b.dx + (((slab.n * s.planes + slab.plane) * s.d + slab.d_begin) * slice) * s.inner + slab.c_begin;
  A* sums = nullptr;
  int64_t step = s.inner;  // from a voxel to the next in sums
  if constexpr (std::is_same_v<T, A>) {
    sums = dx;
  } else {
    sums = b.sums;
    step = channels;
  }
  for (int64_t v = 0; v < voxels; ++v) std::fill(sums + v * step, sums + v * step + channels, A(0));

  const int64_t bins = s.ph * s.pw;
  for (int64_t i = 0; i < b.count; ++i) {
    const int64_t k = b.rows[i];
    for (int64_t pd = 0; pd < s.pd; ++pd) {
      const Range bin = b.regions[k].d[pd];
      if (bin.begin >= slab.d_end || bin.end <= slab.d_begin) continue;
      const int64_t at = ((k * s.planes + slab.plane) * s.pd + pd) * bins * s.inner + slab.c_begin;
      for (int64_t j = 0; j < bins; ++j) {
        const int64_t* argmax = b.argmax + at + j * s.inner;
        const T* grad = b.grad + at + j * s.inner;
        for (int64_t c = 0; c < channels; ++c) {
          if (argmax[c] >= first && argmax[c] < last)
            sums[(argmax[c] - first) * step + c] += to_float(grad[c]);
        }
      }
    }
  }
  if constexpr (!std::is_same_v<T, A>) {
    for (int64_t v = 0; v < voxels; ++v) {
      for (int64_t c = 0; c < channels; ++c) dx[v * s.inner + c] = from_float<T>(sums[v * channels + c]);
    }
  }
}

}  // namespace

const isa::KernelTable<BackwardFunction<float>> backward_f32{
    {"roi_pool3d_backward_f32_scalar", isa::Level::scalar, backward<float>}};
const isa::KernelTable<BackwardFunction<bfloat16>> backward_bf16{
    {"roi_pool3d_backward_bf16_scalar", isa::Level::scalar, backward<bfloat16>}};
const isa::KernelTable<BackwardFunction<double>> backward_f64{
    {"roi_pool3d_backward_f64_scalar", isa::Level::scalar, backward<double>}};

}  // namespace volnet::roi_pool3d

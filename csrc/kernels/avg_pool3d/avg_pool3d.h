// Mean over windows of a volume, torch's avg_pool3d and adaptive_avg_pool3d.
//
//   y[n, c, o] = (sum over taps j of x[n, c, o * stride - padding + j]) / divisor(o)   (o, j: d, h, w)
//
// with zeros in the padding. divisor(o) is divisor_override if that is not 0; else the number of voxels of
// the window, those in the padding counted with count_include_pad, those beyond the padding never.
//
// Layouts: x and y both plain, [N, C, D, H, W] dense, or both channels last, [N, D, H, W, C] dense. No
// alignment is asked for; they must not alias. The dilation of every axis is 1. Sums are made in float32 for
// bfloat16.
//
// Work comes in rows of the result, of y forward and of dx backward: row ((n * C + c) * D + d) * H + h of [W]
// in plain layout, row (n * D + d) * H + h of [W, C] in channels last. Any set of rows can be made by itself.
//
// The vector kernels make the plain layout separably: first over (d, h) of each column into a padded row of
// scratch, then across w; backward does so in both layouts. They ask for fits_vector().
//
// Backward: dx[n, c, i] = sum of dy[n, c, o] / divisor(o) over the outputs o whose windows hold i.
#pragma once

#include <algorithm>
#include <cstdint>

#include "isa/dispatch.h"
#include "kernels/pooling/spread.h"
#include "kernels/pooling/tables.h"

namespace volnet::avg_pool3d {

struct Params {
  const void* source;  // x, or dy in backward
  void* result;        // y, or dx in backward
  int64_t batch, channels;
  pooling::Axis d, h, w;
  bool count_include_pad;
  int64_t divisor_override;  // 0: none
  bool stream = false;       // backward: dx goes past the caches
  bool wide_result = false;  // forward: y is of the type of the sums; for windows made in parts
};

// What an output counts for on one axis; the divisor is the product over three.
static inline int64_t window_size(const Params& p, const pooling::Axis& a, int64_t output) {
  if (a.windows) return a.windows[output].size();
  const int64_t start = output * a.stride - a.padding;
  const int64_t end = std::min(start + a.kernel, a.in + a.padding);
  return p.count_include_pad ? end - start : std::min(end, a.in) - std::max<int64_t>(start, 0);
}

// The divisor without the part of the w axis, which is column_divisor.
static inline int64_t row_divisor(const Params& p, int64_t od, int64_t oh) {
  return p.divisor_override != 0 ? p.divisor_override : window_size(p, p.d, od) * window_size(p, p.h, oh);
}
static inline int64_t column_divisor(const Params& p, int64_t ow) {
  return p.divisor_override != 0 ? 1 : window_size(p, p.w, ow);
}

using pooling::round_up;
using pooling::widest;

// The padded row of forward's scratch, in floats. Vectors are read past the last column, up to the widest
// Vec; two of them where the stride is 2.
int64_t forward_row(const Params& params);
// Whether forward sums each window by itself, along the row, instead of one tap of many windows at a time.
bool sums_runs(const pooling::Axis& axis);
// Whether forward goes through a table of each window's voxels: windows that keep no stride.
bool gathers_windows(const pooling::Axis& axis);
// The rows of backward's scratch, in floats: of the outputs' sums, and of dx.
int64_t backward_sums(const Params& params, bool plain);
int64_t backward_row(const Params& params, bool plain);

// Floats; forward has none in channels last.
int64_t forward_scratch(const Params& params, bool plain);
int64_t backward_scratch(const Params& params, bool plain);
bool fits_vector(const Params& params, bool plain);

// scratch: forward_scratch or backward_scratch floats of the calling thread, 64-byte aligned; the scalar
// kernels touch none.
using Kernel = void (*)(const Params&, int64_t row_begin, int64_t row_end, float* scratch);

// Where the windows of y were summed in parts, by a forward kernel with wide_result: adds them up and
// divides. sums: rows of the parts, [planes, params.d.out * parts.d, params.h.out * parts.h, row].
using Join = void (*)(const Params&, const pooling::Parts&, const void* sums, int64_t row_elements,
                      int64_t row_begin, int64_t row_end);

#define VOLNET_DECLARE(DTYPE)                                                                    \
  void forward_plain_##DTYPE(const Params&, int64_t row_begin, int64_t row_end, float*);         \
  void forward_channels_last_##DTYPE(const Params&, int64_t row_begin, int64_t row_end, float*); \
  void backward_plain_##DTYPE(const Params&, int64_t row_begin, int64_t row_end, float*);        \
  void backward_channels_last_##DTYPE(const Params&, int64_t row_begin, int64_t row_end, float*);
namespace scalar {
VOLNET_DECLARE(f32)
VOLNET_DECLARE(bf16)
VOLNET_DECLARE(f64)
void join_f32(const Params&, const pooling::Parts&, const void*, int64_t, int64_t, int64_t);
void join_bf16(const Params&, const pooling::Parts&, const void*, int64_t, int64_t, int64_t);
void join_f64(const Params&, const pooling::Parts&, const void*, int64_t, int64_t, int64_t);
}  // namespace scalar
namespace avx2 {
VOLNET_DECLARE(f32)
VOLNET_DECLARE(bf16)
}  // namespace avx2
namespace avx512 {
VOLNET_DECLARE(f32)
VOLNET_DECLARE(bf16)
}  // namespace avx512
#undef VOLNET_DECLARE

extern const isa::KernelTable<Kernel> forward_plain_f32, forward_plain_bf16, forward_plain_f64;
extern const isa::KernelTable<Kernel> forward_channels_last_f32, forward_channels_last_bf16,
    forward_channels_last_f64;
extern const isa::KernelTable<Kernel> backward_plain_f32, backward_plain_bf16, backward_plain_f64;
extern const isa::KernelTable<Kernel> backward_channels_last_f32, backward_channels_last_bf16,
    backward_channels_last_f64;

}  // namespace volnet::avg_pool3d

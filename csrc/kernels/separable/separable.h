// A linear map along each axis of a volume: interpolation, area averages, Gaussians, splines, and the
// gradients of all of these, which are the transposed maps.
//
//   y[n, c, od, oh, ow] = sum over taps i of d, j of h, k of w:
//       Wd[od, i] * Wh[oh, j] * Ww[ow, k] * x[n, c, Id[od, i], Ih[oh, j], Iw[ow, k]]
//
// Layouts: x and y both plain, [N, C, D, H, W], or both channels last, [N, D, H, W, C]. x is dense; rows of
// y, [W] or [W, C], are, and lie at the distances that Params says. No alignment is asked for; they must not
// alias. Sums are made in A: double for double, else float.
//
// Work comes in slabs: slab (image * blocks + block) * D + d is plane d of the result, restricted to the rows
// [block * rows, (block + 1) * rows) of h; an image is one channel in plain layout, all of them in channels
// last. First d is summed, for all the rows of x that the slab needs, into scratch; then h, row by row; then
// w. Or, in plain layout where the result has more rows than x and is narrower than A (Params::w_first), w is
// summed first, in the planes of x that the slab needs, which are kept for the slab after it; then d; then h,
// into the result: the sums that are made for every voxel of it are then the cheap ones, of whole rows. Any
// set of slabs can be made by itself.
#pragma once

#include <cstdint>

#include "isa/dispatch.h"

namespace volnet::separable {

// The matrix of one axis, a few columns a row.
template <class A>
struct Map {
  int64_t in, out;
  int64_t taps;          // of the output that has most
  bool selects;          // every output is one input, unchanged
  const int64_t* count;  // [out] taps of an output
  const int64_t* index;  // [out, taps] inputs
  const A* weight;       // [out, taps]
};

// How far apart the inputs are that one vector of outputs takes as its tap k.
enum class Reach { vector, two_vectors, anywhere };

// The map of w again, for a row of scratch in plain layout: `width` outputs together, tap by tap.
template <class A>
struct Lanes {
  Reach reach;  // within one vector from `base`, and every output has all the taps; within two; or not
  const int64_t* base;  // [blocks, taps]; 0 with Reach::anywhere
  const int32_t*
      lane;         // [blocks, taps, width] inputs after base; for a missing tap -1, or map.in with anywhere
  const A* weight;  // [blocks, taps, width]; 0 for a missing tap
};

template <class A>
struct Params {
  const void* source;
  void* result;
  int64_t channels;  // of an image
  Map<A> d, h, w;
  Lanes<A> lanes;                            // plain layout only
  int64_t rows, blocks;                      // of h: rows in a block, and blocks
  const int64_t* first_row;                  // [blocks] of x that the block needs,
  const int64_t* last_row;                   // and the one after the last
  int64_t image_step, plane_step, row_step;  // of the result, elements
  bool stream;                               // rows are whole vectors and go past the caches
  bool w_first;                              // only where fits_w_first says so
};

inline constexpr int64_t widest = 16;  // lanes of the widest Vec

static inline int64_t round_up(int64_t n) { return (n + widest - 1) / widest * widest; }

// With w first, planes are kept at their index modulo the number of taps.
inline constexpr int64_t most_planes = 4;
template <class A>
bool fits_w_first(const Map<A>& d, const Lanes<A>& lanes) {
  bool fits = d.taps <= most_planes && lanes.reach != Reach::anywhere;
  for (int64_t o = 0; o < d.out; ++o) {
    const int64_t* taps = d.index + o * d.taps;
    for (int64_t k = 1; k < d.count[o]; ++k) fits = fits && taps[k] - taps[0] < d.taps && taps[k] >= taps[0];
    fits = fits && d.count[o] > 0;
  }
  return fits;
}

// Elements of A that a call needs: the planes summed over d, and some rows summed over h, which are read up
// to two vectors past their ends; with w first, planes summed over w, one that is their sum over d, and one
// of x.
template <class A>
int64_t most_rows(const Params<A>& p) {
  int64_t most = 0;
  for (int64_t b = 0; b < p.blocks; ++b)
    most = most < p.last_row[b] - p.first_row[b] ? p.last_row[b] - p.first_row[b] : most;
  return most;
}
template <class A>
int64_t planes_scratch(const Params<A>& p) {
  return p.d.selects ? 0 : round_up(most_rows(p) * p.w.in * p.channels);
}
template <class A>
int64_t row_scratch(const Params<A>& p) {
  return round_up(p.w.in * p.channels) + 3 * widest;
}
template <class A>
int64_t plane_room(const Params<A>& p) {
  return round_up(most_rows(p) * p.w.out);
}
template <class A>
int64_t scratch_elements(const Params<A>& p) {
  if (!p.w_first) return planes_scratch(p) + row_scratch(p);
  return (p.d.taps + 1) * plane_room(p) + round_up(most_rows(p) * p.w.in) + 3 * widest;
}

// scratch: scratch_elements of the calling thread, 64-byte aligned.
template <class A>
struct Kernel {
  void (*run)(const Params<A>&, int64_t slab_begin, int64_t slab_end, A* scratch);
  int64_t width;  // lanes of Params::lanes
};

#define VOLNET_DECLARE(NAME, A) void NAME(const Params<A>&, int64_t slab_begin, int64_t slab_end, A*);
#define VOLNET_DECLARE_LEVEL(LEVEL)         \
  namespace LEVEL {                         \
  VOLNET_DECLARE(plain_f32, float)          \
  VOLNET_DECLARE(plain_bf16, float)         \
  VOLNET_DECLARE(plain_i16, float)          \
  VOLNET_DECLARE(plain_i16_f32, float)      \
  VOLNET_DECLARE(plain_f32_i16, float)      \
  VOLNET_DECLARE(channels_last_f32, float)  \
  VOLNET_DECLARE(channels_last_bf16, float) \
  }
VOLNET_DECLARE_LEVEL(scalar)
VOLNET_DECLARE_LEVEL(avx2)
VOLNET_DECLARE_LEVEL(avx512)
namespace scalar {
VOLNET_DECLARE(plain_f64, double)
VOLNET_DECLARE(channels_last_f64, double)
}  // namespace scalar
#undef VOLNET_DECLARE_LEVEL
#undef VOLNET_DECLARE

// Named after the types of x and of y, where these differ.
extern const isa::KernelTable<Kernel<float>> plain_f32, plain_bf16, plain_i16, plain_i16_f32, plain_f32_i16,
    channels_last_f32, channels_last_bf16;
extern const isa::KernelTable<Kernel<double>> plain_f64, channels_last_f64;

}  // namespace volnet::separable

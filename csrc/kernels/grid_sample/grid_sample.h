// Samples of a volume at places that a grid gives, torch's grid_sample on [N, C, D, H, W].
//
//   y[n, p, c] = sum over the corners k of the cell that place p falls into: weight[k] * x[n, corner[k], c]
//
// A place is (x, y, z), each -1 at the first and 1 at the last voxel: at their centres with align_corners,
// else at their outer edges. Mode `nearest` has one corner of weight 1. Corners outside count zero
// (Padding::zeros); or the place is brought inside first, to the border or mirrored at it.
//
// Layouts: x [N, D, H, W, C] and y [N, points, C] dense, or, in the plain kernels, x [N, C, D, H, W] and y
// [N, C, points]; grid [N, points, 3] dense. No alignment is asked for; nothing may alias. Sums are made in
// float32 for bfloat16.
//
// Backward: dx[n, v, c] = sum over the places p and their corners k that are v: weight[k] * dy[n, p, c], in
// the order of the places whoever computes it; dgrid is the derivative of y by the place, zero with
// `nearest`, which the kernels do not take.
#pragma once

#include <cstdint>

#include "isa/dispatch.h"

namespace volnet::grid_sample {

enum class Padding { zeros, border, reflection };

struct Params {
  const void* x;
  const void* grid;
  const void* dy;  // backward only
  void* result;    // y, or dgrid in backward_grid; dx in the type of the sums in backward_input
  int64_t channels, d, h, w;
  int64_t points;  // of an image
  bool nearest, align_corners;
  Padding padding;
};

// Makes the points [begin, end) of all images' points: y, or dgrid.
using Kernel = void (*)(const Params&, int64_t begin, int64_t end);

// Adds up dx of one image in the planes [d_begin, d_end) and the channels [c_begin, c_end), which are zero
// before.
struct Part {
  int64_t image, d_begin, d_end, c_begin, c_end;
};
using ScatterKernel = void (*)(const Params&, const Part&);

// The plain kernels take offsets in a channel as int32. No kernel takes more than 2^31 - 2 voxels on an axis.
bool fits_plain(const Params& params);

#define VOLNET_DECLARE(DTYPE)                                      \
  void forward_##DTYPE(const Params&, int64_t begin, int64_t end); \
  void backward_input_##DTYPE(const Params&, const Part&);         \
  void backward_grid_##DTYPE(const Params&, int64_t begin, int64_t end);
namespace scalar {
VOLNET_DECLARE(f32)
VOLNET_DECLARE(bf16)
VOLNET_DECLARE(f64)
void forward_plain_f32(const Params&, int64_t begin, int64_t end);
void backward_grid_plain_f32(const Params&, int64_t begin, int64_t end);
}  // namespace scalar
namespace avx2 {
VOLNET_DECLARE(f32)
VOLNET_DECLARE(bf16)
void forward_plain_f32(const Params&, int64_t begin, int64_t end);
void backward_grid_plain_f32(const Params&, int64_t begin, int64_t end);
}  // namespace avx2
namespace avx512 {
VOLNET_DECLARE(f32)
VOLNET_DECLARE(bf16)
void forward_plain_f32(const Params&, int64_t begin, int64_t end);
void backward_grid_plain_f32(const Params&, int64_t begin, int64_t end);
}  // namespace avx512
#undef VOLNET_DECLARE

extern const isa::KernelTable<Kernel> forward_f32, forward_bf16, forward_f64, forward_plain_f32;
extern const isa::KernelTable<ScatterKernel> backward_input_f32, backward_input_bf16, backward_input_f64;
extern const isa::KernelTable<Kernel> backward_grid_f32, backward_grid_bf16, backward_grid_f64,
    backward_grid_plain_f32;

}  // namespace volnet::grid_sample

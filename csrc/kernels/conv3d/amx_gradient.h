// The gradient of the weights on AMX: for every tap the product of x, transposed, and dy, over all positions.
//
//   dw[t, c, k] = sum over n, o of x[n, i(o, t), c] * dy[n, o, k],    db[k] = sum over n, o of dy[n, o, k]
//
// Numbers are taken as bfloat16 parts, axes as phases and shifts (amx.h). A piece, a range of output planes
// and rows with some blocks of channels and filters, brings to scratch
//   x as [part][plane][phase h][phase w][channel][position]: a tile is 16 channels by 32 positions, and a tap
//     moves it along the positions;
//   dy as [part][plane][16 filters][pair of positions][filter][2]: zeros where a position is no output.
// Its sums go to partial [range][group][tap][block of 32 channels][block of 32 filters][32][32] and to
// partial_bias [range][group][blocks of 32 filters]; amx_gradient_sum() adds the ranges up in their order.
// The ranges depend on the shape alone, so the result does not depend on the number of threads.
#pragma once

#include <cstdint>

#include "kernels/conv3d/amx.h"

namespace volnet::conv3d {

struct AmxGradient {
  static constexpr int64_t most_planes = 16, most_filters = 512;  // of a tile

  const void* x = nullptr;
  const void* dy = nullptr;
  float* partial = nullptr;
  float* partial_bias = nullptr;
  int64_t batch = 0, groups = 1, channels = 0, filters = 0;
  std::array<Axis, 3> axes;  // of the forward pass

  int64_t parts = 1;
  int64_t channel_blocks = 1, filter_blocks = 1, taps = 1;
  AmxAxis height, width;

  int64_t range_planes = 1, range_rows = 1;                  // outputs of a range
  int64_t plane_tile = 1, row_tile = 1;                      // outputs that are in scratch together
  int64_t channel_tile = 1, filter_tile = 1;                 // blocks of a piece
  int64_t row = 0;                                           // positions of a row
  int64_t steps = 0;                                         // tiles along the positions of a plane
  int64_t x_positions = 0, dy_positions = 0;                 // of a plane in scratch
  int64_t x_line = 0, x_phase = 0, x_plane = 0, x_part = 0;  // bytes
  int64_t dy_plane = 0, dy_part = 0;                         // bytes
  int64_t planes = 1;                                        // of the ring of x
  int64_t ranges = 0, pieces = 0;
};

struct AmxGradientKernel {
  void (*run)(const AmxGradient&, int64_t piece, void* scratch);
};

namespace amx {
void weight_gradient_f32(const AmxGradient&, int64_t piece, void* scratch);
void weight_gradient_bf16(const AmxGradient&, int64_t piece, void* scratch);
}  // namespace amx

extern const isa::KernelTable<AmxGradientKernel> amx_gradient_f32, amx_gradient_bf16;

// Sets up a call whose sizes and axes are set; false where another kernel is better.
bool plan_amx_gradient(int64_t parts, AmxGradient& plan);

int64_t amx_gradient_scratch(const AmxGradient& plan);  // bytes a worker
int64_t amx_gradient_partial(const AmxGradient& plan);  // floats
int64_t amx_gradient_partial_bias(const AmxGradient& plan);

// Piece [0, groups * channel_blocks * filter_blocks) of dw [groups * filters, channels, taps] and of db.
void amx_gradient_sum(const AmxGradient& plan, int64_t piece, float* dw, float* db);

}  // namespace volnet::conv3d

// Winograd convolution in three dimensions, float32 arithmetic.
//
// On an axis with three taps, m outputs come from m + 2 inputs with m + 2 multiplications instead of 3 m:
//   y = A^T [ (G g) * (B^T d) ]        F(m, 3), m = 2 or 4; an axis with one tap is left alone (m = 1).
// Applied along d, h and w in turn this turns a convolution into P = (m_d + 2)(m_h + 2)(m_w + 2) independent
// matrix products over the tiles:  M[p][tile][k] = sum over c of V[p][tile][c] * U[p][c][k].
// F(4, 3) on all axes needs 216 products for 64 outputs where the direct algorithm needs 1,728.
// Points 0, 1, -1 (2, -2) and infinity: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
// 2016.
//
// Fused: a block of tiles goes through the stages together, in scratch that should stay in the second-level
// cache:
//   input           V = B^T d, along h and w plane by plane in registers, then along d
//   for each index a along d:
//     multiply      M = V U for the products of plane a
//     output_plane  Z[a] = A^T M along h and w
//   output          y = A^T Z along d, and the bias
// Staged: where that leaves too few blocks for the workers, because tiles are few (and the weights, then, are
// most of what is read), all tiles go through `input`, then through the two middle stages, split by a and
// blocks of k as well, so that every weight is read by one worker, then through `output`.
//
// Layouts (floats): U [groups][P][blocks of k][channels][k_block]; V [tiles][vectors of channels][P][width];
// M [tiles][blocks of k][products of a plane][k_block]; Z [tiles][vectors of k][alpha_d][m_h][m_w][width]. So
// what a transform writes or reads of a tile is contiguous, and only the products jump from tile to tile; the
// steps between tiles are odd numbers of vectors, or tiles would share cache sets. x and y are channels-last
// volumes. Nothing may alias. Tiles at the end of an axis read zeros and store only what lies inside.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "isa/dispatch.h"
#include "kernels/conv3d/conv3d.h"
#include "kernels/conv3d/planner.h"

namespace volnet::conv3d {

struct WinogradAxis {
  int64_t input = 0, output = 0;
  int64_t first = 0;  // input voxel = output voxel + first + tap
  int64_t m = 1;      // outputs a tile: 1, 2 or 4
  int64_t tiles = 0;

  int64_t alpha() const { return m == 1 ? 1 : m + 2; }
  int64_t taps() const { return m == 1 ? 1 : 3; }
};

struct Winograd {
  const void* x = nullptr;
  const float* weights = nullptr;  // U
  const float* bias = nullptr;     // [groups * filters] or null
  void* y = nullptr;
  int64_t batch = 0, groups = 1, channels = 0, filters = 0;
  std::array<WinogradAxis, 3> axes;
  Epilogue epilogue;
  bool loads_inputs = false;
  Inputs inputs;

  int64_t width = 0, k_block = 0;      // lanes of a vector; filters multiplied at once
  int64_t c_padded = 0, k_padded = 0;  // a group
  bool staged = false;
  int64_t multiplied_tiles = 0;   // of a piece of the middle stages of a staged plan,
  int64_t multiplied_blocks = 0;  // and its blocks of k
  int64_t block_tiles = 0;        // tiles that are transformed, multiplied and transformed back together
  // Floats from one vector of channels (V) or filters (Z), or one block of filters (M), to the next.
  int64_t v_step = 0, m_step = 0, z_step = 0;

  int64_t products() const { return axes[0].alpha() * axes[1].alpha() * axes[2].alpha(); }
  int64_t image_tiles() const { return axes[0].tiles * axes[1].tiles * axes[2].tiles; }
  int64_t tiles() const { return batch * image_tiles(); }
};

// V of the tiles [first, first + count) of a group.
using WinogradInput = void (*)(const Winograd&, int64_t group, int64_t first, int64_t count, float* v);
// M of plane a for `count` tiles and the blocks of k [k_begin, k_end).
using WinogradMultiply = void (*)(const Winograd&, int64_t group, int64_t a, int64_t k_begin, int64_t k_end,
                                  int64_t count, const float* v, float* m);
// Z[a] of `count` tiles, of the same blocks of k.
using WinogradOutputPlane = void (*)(const Winograd&, int64_t a, int64_t k_begin, int64_t k_end,
                                     int64_t count, const float* m, float* z);
// y of the tiles [first, first + count).
using WinogradOutput = void (*)(const Winograd&, int64_t group, int64_t first, int64_t count, const float* z);

// U of one channel for a block of filters, from taps [kernel][k_block]; product p goes to u[p * p_step].
using WinogradWeights = void (*)(const Winograd&, int64_t p_step, const float* taps, float* u);

struct WinogradKernel {
  WinogradWeights weights;
  WinogradInput input;
  WinogradMultiply multiply;
  WinogradOutputPlane output_plane;
  WinogradOutput output;
  int64_t width;     // lanes of a vector
  int64_t row_tile;  // tiles whose sums fit the registers
};

#define VOLNET_WINOGRAD_KERNELS(level)                                                                     \
  namespace level {                                                                                        \
  void winograd_input_f32(const Winograd&, int64_t group, int64_t first, int64_t count, float* v);         \
  void winograd_input_bf16(const Winograd&, int64_t group, int64_t first, int64_t count, float* v);        \
  void winograd_multiply(const Winograd&, int64_t group, int64_t a, int64_t k_begin, int64_t k_end,        \
                         int64_t count, const float* v, float* m);                                         \
  void winograd_output_plane(const Winograd&, int64_t a, int64_t k_begin, int64_t k_end, int64_t count,    \
                             const float* m, float* z);                                                    \
  void winograd_output_f32(const Winograd&, int64_t group, int64_t first, int64_t count, const float* z);  \
  void winograd_output_bf16(const Winograd&, int64_t group, int64_t first, int64_t count, const float* z); \
  void winograd_weights(const Winograd&, int64_t p_step, const float* taps, float* u);                     \
  }
VOLNET_WINOGRAD_KERNELS(scalar)
VOLNET_WINOGRAD_KERNELS(avx2)
VOLNET_WINOGRAD_KERNELS(avx512)
#undef VOLNET_WINOGRAD_KERNELS

extern const isa::KernelTable<WinogradKernel> winograd_f32, winograd_bf16;

// The tiles (outputs along d, h, w) that Winograd can compute `call` with: none where it does not fit.
std::vector<std::array<int64_t, 3>> winograd_tiles(const Convolution& call);

// `call` by tiles of `tile` outputs.
Winograd plan_winograd(const WinogradKernel& kernel, const Convolution& call,
                       const std::array<int64_t, 3>& tile, int64_t workers);

// Its work, in multiply-adds at the speed of the products.
double winograd_cost(const Winograd& plan);

int64_t transformed_size(const Winograd& plan);
int64_t transforming_pieces(const Winograd& plan);
int64_t transforming_scratch(const Winograd& plan);  // bytes a worker

// U of piece `piece`, one block of k and a range of channels.
template <class S>
void transform_weights(const WinogradKernel& kernel, const S* w, const WeightStrides& strides,
                       const Convolution& call, const Winograd& plan, int64_t piece, float* u,
                       float* scratch);

// A plan runs in stages (one where it is fused), each of independent pieces. Bytes that all workers share
// (V and Z of a staged plan) and that each needs for itself.
int64_t winograd_stages(const Winograd& plan);
int64_t winograd_pieces(const Winograd& plan, int64_t stage);
int64_t winograd_shared(const Winograd& plan);
int64_t winograd_scratch(const Winograd& plan);
void run_winograd_piece(const WinogradKernel& kernel, const Winograd& plan, int64_t stage, int64_t piece,
                        void* shared, void* scratch);

}  // namespace volnet::conv3d

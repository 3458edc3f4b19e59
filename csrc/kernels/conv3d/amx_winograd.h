// Winograd's F(2, 3) along h and w in front of products of AMX tiles; float32 as two bfloat16 parts (amx.h).
//
// A tile is 2 x 2 outputs of a plane d, from 4 x 4 inputs of each plane that a tap along d reads:
//   y = A^T [ sum over taps t and channels c of (G g[t] G^T) * (B^T x[d + t] B) ] A
// so that four outputs take 16 products for each tap along d instead of 36. Transforms are in float32 and
// exact up to a rounding; V = B^T x B and U = G g G^T are split in two parts and multiplied as hi*hi + hi*lo
// + lo*hi. (winograd.h has the matrices; docs/convolution.md says why it stops at two axes.)
//
// A piece (an image, a group, a box of outputs, some blocks of filters) goes through its planes of outputs in
// order, a slab of them at a time, in scratch of its own:
//   transform   V of the planes of input that the slab reads and that are not yet in the ring, zeros for the
//               padding; rows come by way of a buffer of float32, where fused inputs are applied
//   for each block of filters:
//     for each of the 16 frequencies:
//       multiply  M = sum over blocks of channels and taps of V U, for all tiles of the slab
//     finish      A^T M A, and what store_outputs does
// So a weight is read once a slab. Slabs of more planes are for weights that do not fit the cache.
//
// V: [plane of the ring][block of 16 tiles][block of 32 channels][frequency][part][tile][channel]
// M: [plane and block of tiles][frequency][tile][32 filters]
// U: [group][block of 32 filters][frequency][block of channels][tap d][part][16 filters][pair][filter][2]
// where a pair is the channels i and 16 + i of a block, and V holds the channels in the order of pairs. The
// steps between blocks of tiles are odd numbers of kilobytes, or they would share cache sets. The order of
// the sums, blocks of channels and then taps, does not depend on the piece: nor do the bits of a result.
#pragma once

#include <cstdint>

#include "isa/dispatch.h"
#include "kernels/conv3d/conv3d.h"
#include "kernels/conv3d/planner.h"

namespace volnet::conv3d {

struct AmxWinograd {
  Convolution call;  // pointers, sizes, axes; `weights` are the packed ones
  int64_t channel_blocks = 1, filter_blocks = 1;
  int64_t tiles_h = 0, tiles_w = 0;  // of a plane

  int64_t depth_tile = 1, height_tile = 1, width_tile = 1;  // of a piece: planes of outputs, tiles, tiles
  int64_t filter_tile = 1;                                  // blocks of filters of a piece
  int64_t slab = 1;                                         // planes of outputs
  int64_t planes = 1;                                       // of the ring
  int64_t tile_blocks = 1;                                  // of a plane
  int64_t pieces = 0;
  bool fetches_weights = false;  // from behind the second-level cache, ahead of their use
  bool stream = false;           // outputs go past the caches, which they would fill

  static constexpr int64_t v_block = 33 << 10, m_block = 33 << 10;  // bytes
  int64_t plane_size() const { return tile_blocks * channel_blocks * v_block; }
  int64_t frequency_weights() const {  // bytes of a frequency of a block of filters, 4096 a tap and block
    return channel_blocks * static_cast<int64_t>(call.axes[0].taps.size()) * 4096;
  }

  // Where things lie in scratch, in bytes.
  int64_t rows_at = 0, outputs_at = 0, sums_at = 0, ring_at = 0, scratch = 0;
};

struct AmxWinogradKernel {
  void (*run)(const AmxWinograd&, int64_t piece, void* scratch);
  // Transforms and packs the weights of a block of filters and a block of channels.
  void (*pack)(const AmxWinograd&, const float* w, const WeightStrides&, int64_t piece, void* packed);
};

namespace amx {
void winograd_f32(const AmxWinograd&, int64_t piece, void* scratch);
void pack_winograd_f32(const AmxWinograd&, const float* w, const WeightStrides&, int64_t piece, void* packed);
}  // namespace amx

extern const isa::KernelTable<AmxWinogradKernel> amx_winograd_f32;

// Whether it can run the call: three neighbouring taps along h and w, stride 1.
bool amx_winograd_serves(const Convolution& call);

// Sets up `call` (pointers, sizes and axes set) for so many workers.
void plan_amx_winograd(const Convolution& call, int64_t workers, AmxWinograd& plan);

// Cycles of one core, see amx_winograd.cpp.
double amx_winograd_cost(const AmxWinograd& plan);

// Bytes of the packed weights, and how many pieces packing has.
int64_t amx_winograd_packed_size(const AmxWinograd& plan);
int64_t amx_winograd_packing_pieces(const AmxWinograd& plan);

}  // namespace volnet::conv3d

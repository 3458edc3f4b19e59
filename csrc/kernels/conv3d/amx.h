// Convolution on AMX: products of bfloat16 tiles, summed in float32.
//
// A float32 value is taken as the sum of two bfloat16 numbers, x = hi + lo + e with |e| <= 2^-17 |x|, and a
// product of two values as hi*hi + hi*lo + lo*hi; what is left out is at most 2^-15 of the product and has no
// preferred sign. Three tile products at the speed of bfloat16 are several times faster than one float32
// product. (Henry, Tang, Heinecke, "Leveraging the bfloat16 Artificial Intelligence Datatype For
// Higher-Precision Computations", 2019.) bfloat16 volumes and medium precision need one part and one product.
//
// A piece (an image, a group, a box of outputs, some blocks of filters) goes through its planes of outputs in
// order and copies the input they need to scratch as bfloat16 parts, zeros for the padding: a ring of planes,
// [part][plane d][block of channels][phase h][phase w][row h][position w][lanes]. An axis of stride s has up
// to s phases, input voxel = s * (position + first) + residue, so that a tap is a shift by whole positions;
// and rows follow each other, so that sixteen positions are the sixteen lines of a tile even where a row of
// outputs is short. Positions that are no output are computed and dropped. Below 17 channels a position has
// 4, 8 or 16 lanes, and the 32 values that a line of a tile takes cover that many taps along w. Of a single
// channel a position has a patch of 4 rows of 8 voxels, so that a line covers that many taps h and w.
//
// Weights: [group][block of 32 filters][block of channels][tap d][tap or patch h][window w][part][16
// filters][pair of channels][filter][2]. The sum of an output runs through them in this order whatever the
// piece, so that the bits of a result depend neither on how the work is cut nor on the number of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "isa/dispatch.h"
#include "kernels/conv3d/conv3d.h"
#include "kernels/conv3d/planner.h"

namespace volnet::conv3d {

// How the taps of an axis along h or w find their input in scratch.
struct AmxAxis {
  struct Shift {
    int64_t phase, positions;  // `positions` after the first one
  };
  std::vector<int64_t> residues;  // of each phase
  int64_t first = 0;              // input voxel of position p = stride * (p + first) + residue
  int64_t reach = 0;              // `count` outputs read count + reach positions
  std::vector<Shift> shifts;      // of each tap
};

AmxAxis phases_of(const Axis& axis);

// The taps along w that one line of a tile covers: position `shift` and the ones after it.
struct AmxWindow {
  AmxAxis::Shift shift;
  std::vector<int64_t> taps;  // for each position of the window its place in the axis' taps, or -1
};

constexpr int64_t patch_rows = 4, patch_columns = 8, patch_stride = 4;  // the longest along w

struct Amx {
  Convolution call;    // pointers, sizes, axes; `weights` are the packed ones
  int64_t parts = 1;   // bfloat16 numbers a value
  int64_t lanes = 32;  // channels of a position in scratch
  bool patches = false;
  int64_t channel_blocks = 1, filter_blocks = 1;
  AmxAxis height, width;
  std::vector<AmxWindow> windows;
  std::vector<int64_t>
      steps;  // of the taps or patches h and windows w: byte offset within a block of channels of a plane

  int64_t depth_tile = 1, height_tile = 1, width_tile = 1;  // outputs of a piece
  int64_t filter_tile = 1;                                  // blocks of filters of a piece
  int64_t channel_tile = 1;                                 // blocks of channels that are summed in one pass
  int64_t planes = 1;                                       // of the ring
  int64_t row = 0;                                          // positions of a row
  int64_t phase_size = 0, block_size = 0, plane_size = 0, part_size = 0;  // bytes
  int64_t sums_size = 0;                                                  // bytes in front of the ring
  int64_t pieces = 0;
  bool stream = false;  // outputs go past the caches, which they would fill
};

struct AmxKernel {
  void (*run)(const Amx&, int64_t piece, void* scratch);
  // Packs the weights of a block of filters and a block of channels; w is float or bfloat16 as the volumes.
  void (*pack)(const Amx&, const void* w, const WeightStrides&, int64_t piece, void* packed);
};

namespace amx {
void convolution_f32(const Amx&, int64_t piece, void* scratch);
void convolution_bf16(const Amx&, int64_t piece, void* scratch);
void pack_f32(const Amx&, const void* w, const WeightStrides&, int64_t piece, void* packed);
void pack_bf16(const Amx&, const void* w, const WeightStrides&, int64_t piece, void* packed);
}  // namespace amx

extern const isa::KernelTable<AmxKernel> amx_f32, amx_bf16;

// Whether it can run the call, and does so faster than the direct kernel; never with no parts.
bool amx_serves(const Convolution& call, int64_t parts);

// Whether it also takes and gives plain volumes [N, C, D, H, W].
bool amx_serves_plain(const Convolution& call);

// Sets up `call` (pointers, sizes and axes set) of elements of this size with `parts` parts for so many
// workers.
void plan_amx(const Convolution& call, int64_t element_size, int64_t parts, int64_t workers, Amx& plan);

int64_t amx_scratch(const Amx& plan);  // bytes a worker

// Bytes of the packed weights, and how many pieces packing has.
int64_t amx_packed_size(const Amx& plan);
int64_t amx_packing_pieces(const Amx& plan);

}  // namespace volnet::conv3d

// The gradient of the weights in the Winograd domain. The forward pass of an axis is y = A^T [(G g) * (B^T
// d)]; what it does to g, transposed, is
//   dg = G^T [ (B^T d) * (A dy) ]
// so with V = B^T x as in the forward pass and W = A dy, along d, h and w,
//   dU[p][c][k] = sum over tiles of V[p][tile][c] * W[p][tile][k]        dw = G^T dU
// W of the points 1, 1, 1 is the sum of a tile's dy, and so gives the gradient of the bias.
//
// A piece of work is one plane of products (one index a along d), a chunk of channels, a chunk of filters and
// a range of tiles. Its dU stays in the second-level cache while blocks of tiles pass by: of each the plane
// of V and W is computed from x and dy (along d first: a row of B^T or A), then multiplied into dU. In the
// end G^T along h and w leaves a quarter of it; ranges are added up, in order, before G^T along d. The split
// does not depend on the number of threads.
//
// Layouts (floats): V [tiles][vectors of channels][products of a plane][width], W the same with filters; dU
// [products of a plane][c_chunk][k_chunk]; partial [pieces][taps of h and w][c_chunk][k_chunk]; partial_bias
// [ranges][groups][k_padded]. x and dy are channels-last volumes. Nothing may alias.
#pragma once

#include "kernels/conv3d/winograd.h"

namespace volnet::conv3d {

struct WinogradGradient {
  Winograd forward;          // x, sizes and tiles
  const void* dy = nullptr;  // as forward.y
  float* partial = nullptr;
  float* partial_bias = nullptr;

  int64_t c_chunk = 0, k_chunk = 0;  // of a piece; multiples of the vector
  int64_t c_chunks = 0, k_chunks = 0;
  int64_t ranges = 0;       // of tiles
  int64_t block_tiles = 0;  // tiles that are transformed and multiplied together
  int64_t v_step = 0;       // floats from one vector of channels or filters to the next in V and W

  int64_t plane_taps() const { return forward.axes[1].taps() * forward.axes[2].taps(); }
  int64_t u_step() const { return c_chunk * k_chunk + forward.width; }  // not a power of two
  int64_t plane() const { return forward.axes[1].alpha() * forward.axes[2].alpha(); }
  int64_t pieces() const { return ranges * forward.groups * forward.axes[0].alpha() * c_chunks * k_chunks; }
  int64_t k_padded() const { return k_chunks * k_chunk; }
  // The piece of plane a; ranges are the slowest index, chunks of filters the fastest.
  int64_t piece(int64_t range, int64_t group, int64_t a, int64_t c, int64_t k) const {
    return (((range * forward.groups + group) * forward.axes[0].alpha() + a) * c_chunks + c) * k_chunks + k;
  }
};

using WinogradGradientPiece = void (*)(const WinogradGradient&, int64_t piece, void* scratch);
// dw [filters][channels][taps] of one channel of a group.
using WinogradGradientWeights = void (*)(const WinogradGradient&, int64_t group, int64_t c, float* dw);

struct WinogradGradientKernel {
  WinogradGradientPiece run;
  WinogradGradientWeights weights;
  int64_t width;  // lanes of a vector
};

#define VOLNET_WINOGRAD_GRADIENT_KERNELS(level)                                                 \
  namespace level {                                                                             \
  void winograd_gradient_f32(const WinogradGradient&, int64_t piece, void* scratch);            \
  void winograd_gradient_bf16(const WinogradGradient&, int64_t piece, void* scratch);           \
  void winograd_gradient_weights(const WinogradGradient&, int64_t group, int64_t c, float* dw); \
  }
VOLNET_WINOGRAD_GRADIENT_KERNELS(scalar)
VOLNET_WINOGRAD_GRADIENT_KERNELS(avx2)
VOLNET_WINOGRAD_GRADIENT_KERNELS(avx512)
#undef VOLNET_WINOGRAD_GRADIENT_KERNELS

extern const isa::KernelTable<WinogradGradientKernel> winograd_gradient_f32, winograd_gradient_bf16;

// Whether the gradient of the forward pass `call` is less work by Winograd; sets everything but pointers if
// so.
bool plan_winograd_gradient(const WinogradGradientKernel& kernel, const Convolution& call,
                            WinogradGradient& plan);

// Elements of `partial` and `partial_bias`, and bytes of V, W and dU that a worker needs.
int64_t partial_size(const WinogradGradient& plan);
int64_t partial_bias_size(const WinogradGradient& plan);
int64_t winograd_gradient_scratch(const WinogradGradient& plan);

}  // namespace volnet::conv3d

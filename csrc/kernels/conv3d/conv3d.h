// 3-D convolution: direct, depthwise, and the gradient of the weights.
//
// All kernels read and write channels-last volumes [N, D, H, W, C], dense. One description serves the forward
// pass and the gradient of the data:
//
//   y[n, o, k] = bias[k] + sum over taps t and channels c of x[n, i, c] * w[k, c, t]
//
// preceded by what is done to the input (input.h) and followed by the epilogue (epilogue.h).
//
// On each axis output number q (0 <= q < count) is written at o = write_first + q * write_step and tap t
// reads i = q * stride + offset(t), where 0 <= i < input; other taps count as zero (padding).
//   forward:  offset(t) = t * dilation - padding, write_step = 1.
//   gradient of the data: for each residue r = o mod s of the forward stride s, the taps with s | r + padding
//   - t * dilation contribute, offset(t) = (r + padding - t * dilation) / s, stride = 1, write_step = s.
//
// Nothing may alias. Weights are packed in blocks of k_block output channels (see pack_weights); a block that
// is not full is padded with zeros.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "isa/dispatch.h"
#include "kernels/conv3d/epilogue.h"
#include "kernels/conv3d/input.h"

namespace volnet::conv3d {

struct Tap {
  int64_t offset;  // input voxel = q * stride + offset
  int64_t index;   // position in the weight's axis
};

struct Axis {
  int64_t input = 0;   // voxels of x
  int64_t output = 0;  // voxels of y
  int64_t count = 0;   // outputs this call computes
  int64_t stride = 1;
  int64_t write_first = 0;
  int64_t write_step = 1;
  std::vector<Tap> taps;  // ascending offsets
};

// How the kernels go about a call.
enum class Form {
  rows,            // a row of taps at a time
  small_channels,  // all taps at once (small_channels_body.h)
  sliding,         // depthwise: an input voxel for all outputs it touches (depthwise_body.h)
};

// One call of the direct or the depthwise kernel.
struct Convolution {
  const void* x = nullptr;        // [N, D, H, W, groups * channels]
  const void* weights = nullptr;  // packed
  const void* bias = nullptr;     // [groups * filters] in the compute type, or null
  void* y = nullptr;              // [N, D', H', W', groups * filters]
  int64_t batch = 0, groups = 1;
  int64_t channels = 0;  // input channels a group
  int64_t filters = 0;   // output channels a group
  std::array<Axis, 3> axes;
  Epilogue epilogue;
  bool loads_inputs = false;  // from `inputs` instead of x
  Inputs inputs;
  // [N, C, D, H, W] instead; known to the AMX kernel, and plain_y to small_channels_body.h for one channel.
  bool plain_x = false, plain_y = false;

  // From the planner.
  Form form = Form::rows;
  bool stream = false;   // write y past the caches
  int64_t k_block = 0;   // output channels computed at once
  int64_t blocks = 0;    // of these, one after another for the same voxels
  int64_t row_tile = 0;  // output voxels along W computed at once, at most
  int64_t rows = 0;      // output rows (along H) a piece
  int64_t pieces = 0;    // independent pieces of work
  int64_t scratch = 0;   // bytes a worker
};

// A row of taps: the first input voxel they read, their weights, and what to fetch meanwhile.
struct TapRow {
  const void* x;
  const void* weights;
  const void* ahead = nullptr;
};

using ConvolutionKernel = void (*)(const Convolution& call, int64_t piece, void* scratch);

struct DirectKernel {
  ConvolutionKernel run;
  int64_t width;     // lanes of a vector
  int64_t row_tile;  // the most output voxels along W that fit the registers
};

// The gradient of the weights, partial sums over a range of output rows:
//   dw[t, c, k] = sum over n, o of x[n, i(o, t), c] * dy[n, o, k], and db[k] = sum of dy[n, o, k].
// Accumulated into `partial` [taps * channels + 1, k_padded] of each range and group; the last row holds db.
//
// A depthwise convolution is described as one group of one channel with a filter for each of its channels;
// the filter's channel is the one it reads.
struct WeightGradient {
  const void* x = nullptr;
  const void* dy = nullptr;
  void* partial = nullptr;  // [ranges, groups, taps * channels + 1, k_padded], zeroed by the kernel
  int64_t batch = 0, groups = 1, channels = 0, filters = 0;
  std::array<Axis, 3> axes;  // of the forward pass
  bool depthwise = false;

  // From the planner.
  Form form = Form::rows;
  int64_t k_block = 0;
  int64_t k_padded = 0;
  int64_t blocks = 0;  // of filters that a piece computes, one after another
  int64_t rows = 0;    // output rows of a unit, what is summed in registers at once
  int64_t units = 0;   // of all images
  int64_t ranges = 0;  // of units
  int64_t pieces = 0;
  int64_t scratch = 0;  // bytes a worker
};

using WeightGradientKernel = void (*)(const WeightGradient& call, int64_t piece, void* scratch);

struct GradientKernel {
  WeightGradientKernel run;
  int64_t width;
};

#define VOLNET_CONV3D_KERNELS(level)                                             \
  namespace level {                                                              \
  void direct_f32(const Convolution&, int64_t piece, void* scratch);             \
  void direct_bf16(const Convolution&, int64_t piece, void* scratch);            \
  void depthwise_f32(const Convolution&, int64_t piece, void* scratch);          \
  void depthwise_bf16(const Convolution&, int64_t piece, void* scratch);         \
  void weight_gradient_f32(const WeightGradient&, int64_t piece, void* scratch); \
  }
VOLNET_CONV3D_KERNELS(scalar)
VOLNET_CONV3D_KERNELS(avx2)
VOLNET_CONV3D_KERNELS(avx512)
#undef VOLNET_CONV3D_KERNELS

namespace scalar {
void direct_f64(const Convolution&, int64_t piece, void* scratch);
void depthwise_f64(const Convolution&, int64_t piece, void* scratch);
void weight_gradient_f64(const WeightGradient&, int64_t piece, void* scratch);
}  // namespace scalar

extern const isa::KernelTable<DirectKernel> direct_f32, direct_bf16, direct_f64;
extern const isa::KernelTable<DirectKernel> depthwise_f32, depthwise_bf16, depthwise_f64;
extern const isa::KernelTable<GradientKernel> weight_gradient_f32, weight_gradient_f64;

}  // namespace volnet::conv3d

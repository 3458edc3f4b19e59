// Volumes with voxels added at their borders or taken away, and the gradient of that.
//
// On each axis output o shows input voxel source(o):
//
//   constant     o - before, or nothing (the value) where that is outside of the volume
//   replicate    o - before, clamped to the volume
//   reflect      o - before, mirrored at the first and at the last voxel
//   circular     o - before, modulo the size; where voxels are taken away, of what is left
//
// The tables of the sources are made once a call. Backward: dx[i] = the sum of dy[o] over the outputs o that
// show i, in an order that only the sizes decide; bfloat16 is summed in float32.
//
// Layouts: [planes, D, H, W, voxel], dense; plain volumes have planes = N * C and voxels of one element,
// channels_last ones planes = N and voxels of C elements. Any alignment of whole elements; nothing aliases.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "isa/bfloat16.h"
#include "isa/dispatch.h"

namespace volnet::pad {

enum class Mode { constant, reflect, replicate, circular };

// One axis. Outputs [begin, end) show consecutive inputs, source[begin], source[begin] + 1, ...
struct Axis {
  int64_t in, out;
  std::vector<int64_t> source;  // [out]; -1: the value
  int64_t begin, end;
};

Axis axis_of(Mode mode, int64_t in, int64_t before, int64_t after);

struct Forward {
  const char* x;
  char* y;
  const Axis &d, &h, &w;
  int64_t voxel;   // bytes
  uint64_t value;  // of constant, repeated to fill eight bytes
  bool stream;     // store past the caches: for results that do not fit into them
};

// One axis the other way round: outputs[first[i]] to outputs[first[i + 1]] show input i. Inputs [begin, end)
// are each shown once, by consecutive outputs.
//
// Where a voxel is one element, vectors need longer runs: inputs [inner_begin, inner_end) are shown by
// outputs i + before, whoever else shows them, and `border` lists the other outputs.
struct Shown {
  int64_t in, out;
  std::vector<int64_t> first, outputs;
  int64_t begin, end;
  int64_t inner_begin, inner_end, before;
  struct Pair {
    int64_t input, output;
  };
  std::vector<Pair> border;
};

Shown shown_of(const Axis& axis);

struct Backward {
  const void* dy;
  void* dx;
  const Shown &d, &h, &w;
  int64_t voxel;  // elements
  bool stream;    // store past the caches, where dx is aligned for it
};

// Rows [begin, end) of the planes * D * H rows [W, voxel] of y.
using ForwardKernel = void (*)(const Forward&, int64_t begin, int64_t end);
// Rows of dx.
using BackwardKernel = void (*)(const Backward&, int64_t begin, int64_t end);

#define VOLNET_DECLARE                                            \
  void forward(const Forward&, int64_t begin, int64_t end);       \
  void backward_f32(const Backward&, int64_t begin, int64_t end); \
  void backward_bf16(const Backward&, int64_t begin, int64_t end);
namespace scalar {
VOLNET_DECLARE
void backward_f64(const Backward&, int64_t begin, int64_t end);
}  // namespace scalar
namespace avx2 {
VOLNET_DECLARE
}
namespace avx512 {
VOLNET_DECLARE
}
#undef VOLNET_DECLARE

extern const isa::KernelTable<ForwardKernel> forward_kernels;
extern const isa::KernelTable<BackwardKernel> backward_f32, backward_bf16, backward_f64;

}  // namespace volnet::pad

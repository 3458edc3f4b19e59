// What the losses of a segmentation are made of, and their gradients, from logits x[c, v] and a target
// t[c, v], without probabilities in memory. With p the softmax over the channels of a voxel, or the sigmoid
// of each number alone, each voxel and channel has two penalties:
//
//             softmax       sigmoid
//   hit       -ln p         -(1 - p)^gamma ln p
//   miss      -ln p         -p^gamma ln(1 - p)
//
//   sums      for each channel c, over voxels v that are not ignored: p, t p, t, t hit, s miss, 1
//             with s = 1 for softmax (its miss is for smoothed labels) and 1 - t for sigmoid
//   voxels    y[v] = sum over c of (hit_c t hit + miss_c s miss), 0 where v is ignored
//   backward  dx[c, v] of grad[v] times sum over c of (a_c p + b_c t p + hit_c t hit + miss_c s miss);
//             dx is 0 where v is ignored
//
// x and dx are [channels, stride], the voxels of a channel side by side. bfloat16 is computed in float32.
// Sums are kept in float for a thousand voxels at most in each lane, and in double beyond. A voxel that is
// ignored does not matter even where its logits are NaN.
#pragma once

#include <cstdint>

#include "isa/dispatch.h"

namespace volnet::segmentation_loss {

enum class Element { uint8, int16, int32, int64, float32, float64, bfloat16 };

// Either a label for each voxel, or t itself as [channels, stride].
struct Target {
  const void* data;
  Element element;
  bool planes;
  int64_t stride;  // of planes
  int64_t first;   // of labels: t[c, v] is 1 where the label is c + first; labels are below channels + first
  bool ignores;
  int64_t ignored;  // label
};

struct WrongLabel {
  bool found = false;
  int64_t voxel = 0, label = 0;
};

// How a penalty is computed.
struct Penalty {
  bool sigmoid;
  double gamma;  // of sigmoid
};

struct Sums {
  const void* x;
  int64_t channels, stride;
  Target target;
  Penalty penalty;
  double* sums;       // [rows_of_sums, channels], to which those of the voxels are added
  WrongLabel* wrong;  // the first that is found; such voxels count as ignored
};
inline constexpr int64_t rows_of_sums = 6;

struct Voxels {
  const void* x;
  int64_t channels, stride;
  Target target;
  Penalty penalty;
  const void* coefficients;  // [2, channels] in the compute type: hit, miss
  void* y;                   // in the compute type
  WrongLabel* wrong;
};

struct Backward {
  const void* x;
  void* dx;  // may be x
  int64_t channels, stride;
  Target target;
  Penalty penalty;
  const void* coefficients;  // [4, channels] in the compute type: a, b, hit, miss
  const void* grad;          // in the compute type; null: 1
  bool stream;  // store past the caches: dx and what lies between its channels must be multiples of 64 bytes
};

// Voxels that are in work at a time; elements of the compute type that a kernel needs as scratch.
inline constexpr int64_t block = 64;
inline int64_t scratch_of(int64_t channels) { return (3 * channels + 3) * block + 5 * channels * 16; }

// Voxels [begin, end), of x and of the target alike.
template <class Params>
using Kernel = void (*)(const Params&, int64_t begin, int64_t end, void* scratch);

#define VOLNET_DECLARE(DTYPE)                                                    \
  void sums_##DTYPE(const Sums&, int64_t begin, int64_t end, void* scratch);     \
  void voxels_##DTYPE(const Voxels&, int64_t begin, int64_t end, void* scratch); \
  void backward_##DTYPE(const Backward&, int64_t begin, int64_t end, void* scratch);
namespace scalar {
VOLNET_DECLARE(f32)
VOLNET_DECLARE(bf16)
VOLNET_DECLARE(f64)
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

extern const isa::KernelTable<Kernel<Sums>> sums_f32, sums_bf16, sums_f64;
extern const isa::KernelTable<Kernel<Voxels>> voxels_f32, voxels_bf16, voxels_f64;
extern const isa::KernelTable<Kernel<Backward>> backward_f32, backward_bf16, backward_f64;

}  // namespace volnet::segmentation_loss

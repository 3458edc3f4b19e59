// Softmax over channels, and its gradient:
//
//   y[c, v] = e^(x[c, v] - m[v]) / the sum over c of e^(x[c, v] - m[v])   with m[v] the greatest x[c, v]
//   dx[c, v] = y[c, v] * (dy[c, v] - the sum over c of dy[c, v] * y[c, v])
//
// forward and backward take tensors [channels, stride], the voxels of a channel side by side. They read a
// few vectors of voxels of all channels into scratch: every value is read and written once, and it does not
// matter if the channels' addresses compete for the same lines of a cache. The kernels of rows take [rows,
// channels], for channels enough to fill vectors. bfloat16 is computed in float32 and rounded once.
//
// y may be x, dx may be grad or y; nothing else aliases. Any alignment of whole elements, but see `stream`.
#pragma once

#include <cstdint>

#include "isa/dispatch.h"

namespace volnet::softmax {

struct Forward {
  const void* x;
  void* y;
  int64_t channels, stride;  // of rows stride is not used
  bool stream;  // store past the caches: y and what lies between its channels must be multiples of 64 bytes
};

struct Backward {
  const void *grad, *y;
  void* dx;
  int64_t channels, stride;
  bool stream;
};

// Voxels that are in work at a time, at most.
inline constexpr int64_t most_voxels = 64;

// Elements of the compute type that a kernel needs as scratch, a multiple of a line.
inline int64_t scratch_of(int64_t channels) { return 2 * channels * most_voxels; }
inline int64_t scratch_of_rows(int64_t channels) { return (channels + 15) / 16 * 16; }

// Voxels or rows [begin, end).
template <class Params>
using Kernel = void (*)(const Params&, int64_t begin, int64_t end, void* scratch);

#define VOLNET_DECLARE(DTYPE)                                                           \
  void forward_##DTYPE(const Forward&, int64_t begin, int64_t end, void* scratch);      \
  void forward_rows_##DTYPE(const Forward&, int64_t begin, int64_t end, void* scratch); \
  void backward_##DTYPE(const Backward&, int64_t begin, int64_t end, void* scratch);    \
  void backward_rows_##DTYPE(const Backward&, int64_t begin, int64_t end, void* scratch);
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

extern const isa::KernelTable<Kernel<Forward>> forward_f32, forward_bf16, forward_f64;
extern const isa::KernelTable<Kernel<Forward>> forward_rows_f32, forward_rows_bf16, forward_rows_f64;
extern const isa::KernelTable<Kernel<Backward>> backward_f32, backward_bf16, backward_f64;
extern const isa::KernelTable<Kernel<Backward>> backward_rows_f32, backward_rows_bf16, backward_rows_f64;

}  // namespace volnet::softmax

// Which channel of a voxel is the greatest:
//
//   labels[v] = the first c with the greatest x[c, v]; NaN is greater than any number
//
// find takes x [channels, stride], the voxels of a channel side by side; find_rows takes x [rows, channels],
// for channels enough to fill vectors. Any alignment of whole elements; nothing aliases.
#pragma once

#include <cstdint>

#include "isa/dispatch.h"

namespace volnet::argmax {

enum class Label { uint8, int16, int32, int64 };

struct Params {
  const void* x;
  void* labels;
  int64_t channels, stride;  // channels fit a label and an int32; of rows stride is not used
  Label label;
};

// Voxels or rows [begin, end).
using Kernel = void (*)(const Params&, int64_t begin, int64_t end);

#define VOLNET_DECLARE(DTYPE)                                   \
  void find_##DTYPE(const Params&, int64_t begin, int64_t end); \
  void find_rows_##DTYPE(const Params&, int64_t begin, int64_t end);
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

extern const isa::KernelTable<Kernel> find_f32, find_bf16, find_f64;
extern const isa::KernelTable<Kernel> find_rows_f32, find_rows_bf16, find_rows_f64;

}  // namespace volnet::argmax

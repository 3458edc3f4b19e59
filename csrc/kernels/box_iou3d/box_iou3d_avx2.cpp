#include <immintrin.h>

#include <cstring>

#include "isa/bfloat16.h"
#include "kernels/box_iou3d/box_iou3d.h"

#include "isa/avx2_begin.h"
namespace volnet::box_iou3d::VOLNET_ISA {
#include "isa/vec_avx2.h"
#include "kernels/box_iou3d/body.h"

#define VOLNET_DEFINE(V, T, DTYPE)                                                                    \
  void forward_##DTYPE(const Params& p, int64_t begin, int64_t end) { forward<V, T>(p, begin, end); } \
  void backward_##DTYPE(const BackwardParams& p, int64_t begin, int64_t end) {                        \
    backward<V, T>(p, begin, end);                                                                    \
  }
VOLNET_DEFINE(Vec, float, f32)
VOLNET_DEFINE(Vec, bfloat16, bf16)
}  // namespace volnet::box_iou3d::VOLNET_ISA
#include "isa/avx2_end.h"

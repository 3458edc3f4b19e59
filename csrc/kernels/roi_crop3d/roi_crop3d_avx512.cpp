#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "isa/bfloat16.h"
#include "kernels/roi_crop3d/roi_crop3d.h"

#include "isa/avx512_begin.h"
namespace volnet::roi_crop3d::VOLNET_ISA {
#include "isa/vec_avx512.h"
#include "kernels/roi_crop3d/body.h"

#define VOLNET_DEFINE(V, T, DTYPE)                                                                       \
  void backward_##DTYPE(const Backward<T>& b, int64_t n, int64_t plane, int64_t d, compute_t<T>* sums) { \
    backward<V>(b, n, plane, d, sums);                                                                   \
  }
VOLNET_DEFINE(Vec, float, f32)
VOLNET_DEFINE(Vec, bfloat16, bf16)
}  // namespace volnet::roi_crop3d::VOLNET_ISA
#include "isa/avx512_end.h"

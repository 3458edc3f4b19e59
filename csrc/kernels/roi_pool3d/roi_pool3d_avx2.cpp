#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "isa/bfloat16.h"
#include "kernels/roi_pool3d/roi_pool3d.h"

#include "isa/avx2_begin.h"
namespace volnet::roi_pool3d::VOLNET_ISA {
#include "isa/vec_avx2.h"
#include "kernels/roi_pool3d/body.h"

void forward_f32(const Forward<float>& f, int64_t pd) { forward<Vec>(f, pd); }
void forward_bf16(const Forward<bfloat16>& f, int64_t pd) { forward<Vec>(f, pd); }
}  // namespace volnet::roi_pool3d::VOLNET_ISA
#include "isa/avx2_end.h"

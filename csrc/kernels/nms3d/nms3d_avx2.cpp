#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "isa/bfloat16.h"
#include "kernels/nms3d/nms3d.h"

#include "isa/avx2_begin.h"
namespace volnet::nms3d::VOLNET_ISA {
#include "isa/vec_avx2.h"
#include "kernels/nms3d/body.h"

void suppress_f32(const Params<float>& p) { suppress<Vec>(p); }
}  // namespace volnet::nms3d::VOLNET_ISA
#include "isa/avx2_end.h"

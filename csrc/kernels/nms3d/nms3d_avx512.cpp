#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "isa/bfloat16.h"
#include "kernels/nms3d/nms3d.h"

#include "isa/avx512_begin.h"
namespace volnet::nms3d::VOLNET_ISA {
#include "isa/vec_avx512.h"
#include "kernels/nms3d/body.h"

void suppress_f32(const Params<float>& p) { suppress<Vec>(p); }
}  // namespace volnet::nms3d::VOLNET_ISA
#include "isa/avx512_end.h"

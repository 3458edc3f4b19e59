#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "isa/bfloat16.h"
#include "kernels/nms3d/nms3d.h"

#include "isa/scalar_begin.h"
namespace volnet::nms3d::VOLNET_ISA {
#include "isa/vec_scalar.h"
#include "kernels/nms3d/body.h"

void suppress_f32(const Params<float>& p) { suppress<Vec>(p); }
void suppress_f64(const Params<double>& p) { suppress<VecDouble>(p); }
}  // namespace volnet::nms3d::VOLNET_ISA
#include "isa/scalar_end.h"

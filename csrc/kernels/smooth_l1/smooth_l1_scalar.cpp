#include <algorithm>
#include <cstring>

#include "isa/bfloat16.h"
#include "kernels/smooth_l1/smooth_l1.h"

#include "isa/scalar_begin.h"
namespace volnet::smooth_l1::VOLNET_ISA {
#include "isa/vec_scalar.h"
#include "kernels/smooth_l1/body.h"
VOLNET_DEFINE(f64, VecDouble, double)
}  // namespace volnet::smooth_l1::VOLNET_ISA
#include "isa/scalar_end.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "isa/bfloat16.h"
#include "kernels/grid_sample/grid_sample.h"

#include "isa/scalar_begin.h"
namespace volnet::grid_sample::VOLNET_ISA {
#include "isa/vec_scalar.h"
#include "kernels/grid_sample/body.h"

VOLNET_DEFINE(f64, VecDouble, double)
}  // namespace volnet::grid_sample::VOLNET_ISA
#include "isa/scalar_end.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "isa/bfloat16.h"
#include "kernels/activate/activate.h"

#include "isa/scalar_begin.h"
namespace volnet::activate::VOLNET_ISA {
#include "isa/vec_scalar.h"
#include "kernels/activate/body.h"
VOLNET_DEFINE(f64, VecDouble, double)
}  // namespace volnet::activate::VOLNET_ISA
#include "isa/scalar_end.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "isa/bfloat16.h"
#include "kernels/layer_norm/layer_norm.h"

#include "isa/scalar_begin.h"
namespace volnet::layer_norm::VOLNET_ISA {
#include "isa/vec_scalar.h"
#include "kernels/layer_norm/body.h"
VOLNET_DEFINE(f64, VecDouble, double)
}  // namespace volnet::layer_norm::VOLNET_ISA
#include "isa/scalar_end.h"

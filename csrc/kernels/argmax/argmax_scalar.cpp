#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "isa/bfloat16.h"
#include "kernels/argmax/argmax.h"

#include "isa/scalar_begin.h"
namespace volnet::argmax::VOLNET_ISA {
#include "isa/vec_scalar.h"
#include "kernels/argmax/body.h"
VOLNET_DEFINE(f64, VecDouble, double)
}  // namespace volnet::argmax::VOLNET_ISA
#include "isa/scalar_end.h"

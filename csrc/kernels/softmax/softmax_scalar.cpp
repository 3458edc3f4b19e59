#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "isa/bfloat16.h"
#include "kernels/softmax/softmax.h"

#include "isa/scalar_begin.h"
namespace volnet::softmax::VOLNET_ISA {
#include "isa/vec_scalar.h"
#include "kernels/softmax/body.h"
VOLNET_DEFINE(f64, VecDouble, double)
}  // namespace volnet::softmax::VOLNET_ISA
#include "isa/scalar_end.h"

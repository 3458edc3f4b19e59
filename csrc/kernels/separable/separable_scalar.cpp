#include <algorithm>
#include <cstring>
#include <type_traits>

#include "isa/bfloat16.h"
#include "kernels/separable/separable.h"

#include "isa/scalar_begin.h"
namespace volnet::separable::VOLNET_ISA {
#include "isa/vec_scalar.h"
#include "kernels/separable/body.h"

VOLNET_DEFINE(plain_f64, true, VecDouble, double, double)
VOLNET_DEFINE(channels_last_f64, false, VecDouble, double, double)
}  // namespace volnet::separable::VOLNET_ISA
#include "isa/scalar_end.h"

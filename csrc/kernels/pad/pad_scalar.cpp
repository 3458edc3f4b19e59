#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "isa/bfloat16.h"
#include "kernels/pad/pad.h"

#include "isa/scalar_begin.h"
namespace volnet::pad::VOLNET_ISA {
#include "isa/vec_scalar.h"
#include "kernels/pad/body.h"
VOLNET_DEFINE(f64, VecDouble, double)
}  // namespace volnet::pad::VOLNET_ISA
#include "isa/scalar_end.h"

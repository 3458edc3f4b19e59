#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "isa/bfloat16.h"
#include "kernels/cat/cat.h"

#include "isa/scalar_begin.h"
namespace volnet::cat::VOLNET_ISA {
#include "isa/vec_scalar.h"
#include "kernels/cat/body.h"
}  // namespace volnet::cat::VOLNET_ISA
#include "isa/scalar_end.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "isa/bfloat16.h"
#include "kernels/resample/resample.h"

#include "isa/scalar_begin.h"
namespace volnet::resample::VOLNET_ISA {
#include "isa/vec_scalar.h"
#include "kernels/resample/body.h"
}  // namespace volnet::resample::VOLNET_ISA
#include "isa/scalar_end.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "isa/bfloat16.h"
#include "kernels/conv3d/winograd_gradient.h"

#include "isa/scalar_begin.h"

namespace volnet::conv3d::VOLNET_ISA {

#include "isa/vec_scalar.h"

constexpr int row_tile = 4;
constexpr int gradient_rows = 1;

#include "kernels/conv3d/winograd_body.h"
#include "kernels/conv3d/winograd_gradient_body.h"

}  // namespace volnet::conv3d::VOLNET_ISA

#include "isa/scalar_end.h"

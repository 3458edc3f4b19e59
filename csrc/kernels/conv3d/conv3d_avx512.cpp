#include "kernels/conv3d/conv3d.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "isa/bfloat16.h"

#include "isa/avx512_begin.h"

namespace volnet::conv3d::VOLNET_ISA {

#include "isa/vec_avx512.h"

constexpr int row_tile = 14;

#include "kernels/conv3d/body.h"

}  // namespace volnet::conv3d::VOLNET_ISA

#include "isa/avx512_end.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "isa/bfloat16.h"
#include "kernels/norm/norm.h"

#include "isa/avx512_begin.h"
namespace volnet::norm::VOLNET_ISA {
#include "isa/vec_avx512.h"
#include "kernels/norm/body.h"
}  // namespace volnet::norm::VOLNET_ISA
#include "isa/avx512_end.h"

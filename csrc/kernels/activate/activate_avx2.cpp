#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "isa/bfloat16.h"
#include "kernels/activate/activate.h"

#include "isa/avx2_begin.h"
namespace volnet::activate::VOLNET_ISA {
#include "isa/vec_avx2.h"
#include "kernels/activate/body.h"
}  // namespace volnet::activate::VOLNET_ISA
#include "isa/avx2_end.h"

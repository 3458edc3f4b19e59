#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "isa/bfloat16.h"
#include "kernels/cat/cat.h"

#include "isa/avx2_begin.h"
namespace volnet::cat::VOLNET_ISA {
#include "isa/vec_avx2.h"
#include "kernels/cat/body.h"
}  // namespace volnet::cat::VOLNET_ISA
#include "isa/avx2_end.h"

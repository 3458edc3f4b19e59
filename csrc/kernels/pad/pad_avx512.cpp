#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "isa/bfloat16.h"
#include "kernels/pad/pad.h"

#include "isa/avx512_begin.h"
namespace volnet::pad::VOLNET_ISA {
#include "isa/vec_avx512.h"
#include "kernels/pad/body.h"
}  // namespace volnet::pad::VOLNET_ISA
#include "isa/avx512_end.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "isa/bfloat16.h"
#include "kernels/argmax/argmax.h"

#include "isa/avx512_begin.h"
namespace volnet::argmax::VOLNET_ISA {
#include "isa/vec_avx512.h"
#include "kernels/argmax/body.h"
}  // namespace volnet::argmax::VOLNET_ISA
#include "isa/avx512_end.h"

#include <immintrin.h>
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "isa/bfloat16.h"
#include "kernels/separable/separable.h"

#include "isa/avx512_begin.h"
namespace volnet::separable::VOLNET_ISA {
#include "isa/vec_avx512.h"
#include "kernels/separable/body.h"

}  // namespace volnet::separable::VOLNET_ISA
#include "isa/avx512_end.h"

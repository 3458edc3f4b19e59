#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "isa/bfloat16.h"
#include "kernels/softmax/softmax.h"

#include "isa/avx512_begin.h"
namespace volnet::softmax::VOLNET_ISA {
#include "isa/vec_avx512.h"
#include "kernels/softmax/body.h"
}  // namespace volnet::softmax::VOLNET_ISA
#include "isa/avx512_end.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "isa/bfloat16.h"
#include "kernels/layer_norm/layer_norm.h"

#include "isa/avx2_begin.h"
namespace volnet::layer_norm::VOLNET_ISA {
#include "isa/vec_avx2.h"
#include "kernels/layer_norm/body.h"
}  // namespace volnet::layer_norm::VOLNET_ISA
#include "isa/avx2_end.h"

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "isa/bfloat16.h"
#include "kernels/smooth_l1/smooth_l1.h"

#include "isa/avx2_begin.h"
namespace volnet::smooth_l1::VOLNET_ISA {
#include "isa/vec_avx2.h"
#include "kernels/smooth_l1/body.h"
}  // namespace volnet::smooth_l1::VOLNET_ISA
#include "isa/avx2_end.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "isa/bfloat16.h"
#include "kernels/grid_sample/grid_sample.h"

#include "isa/avx512_begin.h"
namespace volnet::grid_sample::VOLNET_ISA {
#include "isa/vec_avx512.h"
#include "kernels/grid_sample/body.h"
}  // namespace volnet::grid_sample::VOLNET_ISA
#include "isa/avx512_end.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "isa/bfloat16.h"
#include "kernels/resample/resample.h"

#include "isa/avx512_begin.h"
namespace volnet::resample::VOLNET_ISA {
#include "isa/vec_avx512.h"
#include "kernels/resample/body.h"
}  // namespace volnet::resample::VOLNET_ISA
#include "isa/avx512_end.h"

#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "isa/bfloat16.h"
#include "kernels/max_pool3d/max_pool3d.h"

#include "isa/avx2_begin.h"
namespace volnet::max_pool3d::VOLNET_ISA {
#include "isa/vec_avx2.h"
#include "kernels/bytes/writers.h"
#include "kernels/pooling/spread_body.h"

#include "kernels/max_pool3d/body.h"

#include "kernels/max_pool3d/scatter_body.h"
}  // namespace volnet::max_pool3d::VOLNET_ISA
#include "isa/avx2_end.h"

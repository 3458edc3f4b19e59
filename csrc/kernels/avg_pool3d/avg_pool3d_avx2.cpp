#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "isa/bfloat16.h"
#include "kernels/avg_pool3d/avg_pool3d.h"

#include "isa/avx2_begin.h"
namespace volnet::avg_pool3d::VOLNET_ISA {
#include "isa/vec_avx2.h"
#include "kernels/bytes/writers.h"
#include "kernels/pooling/spread_body.h"

#include "kernels/avg_pool3d/body.h"
}  // namespace volnet::avg_pool3d::VOLNET_ISA
#include "isa/avx2_end.h"

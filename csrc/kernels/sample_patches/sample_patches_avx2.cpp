#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "isa/bfloat16.h"
#include "kernels/sample_patches/sample_patches.h"

// Nothing of the level may come before here.
#include "isa/avx2_begin.h"
namespace volnet::sample_patches::VOLNET_ISA {
#include "isa/vec_avx2.h"
#include "kernels/sample_patches/body.h"
}  // namespace volnet::sample_patches::VOLNET_ISA
#include "isa/avx2_end.h"

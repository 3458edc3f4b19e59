#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "isa/bfloat16.h"
#include "kernels/sample_patches/sample_patches.h"

// Nothing of the level may come before here.
#include "isa/avx512_begin.h"
namespace volnet::sample_patches::VOLNET_ISA {
#include "isa/vec_avx512.h"
#include "kernels/sample_patches/body.h"
}  // namespace volnet::sample_patches::VOLNET_ISA
#include "isa/avx512_end.h"

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "kernels/layout/layout.h"

#include "isa/avx2_begin.h"
namespace volnet::layout::VOLNET_ISA {
#include "kernels/layout/tile_avx2.h"

#include "kernels/layout/body.h"

void transpose_b2(const Transpose& p, const Rectangle& part) { transpose<uint16_t>(p, part); }
void transpose_b4(const Transpose& p, const Rectangle& part) { transpose<uint32_t>(p, part); }
void transpose_b8(const Transpose& p, const Rectangle& part) { transpose<uint64_t>(p, part); }
}  // namespace volnet::layout::VOLNET_ISA
#include "isa/avx2_end.h"

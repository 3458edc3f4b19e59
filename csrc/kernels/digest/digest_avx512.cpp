#include <immintrin.h>

#include <cstdint>

#include "kernels/digest/digest.h"

#include "isa/avx512_begin.h"
namespace volnet::digest::VOLNET_ISA {
namespace {

inline __m512i products(__m512i x, __m512i key) {
  const __m512i sum = _mm512_add_epi32(x, key);
  return _mm512_mul_epu32(sum, _mm512_srli_epi64(sum, 32));
}

// _mm512_reduce_add_epi64 adds signed numbers, whose overflow has no meaning.
inline uint64_t sum_of(__m512i x) {
  alignas(64) uint64_t parts[8];
  _mm512_store_si512(parts, x);
  uint64_t sum = 0;
  for (const uint64_t part : parts) sum += part;
  return sum;
}

}  // namespace

void block_sums(const void* blocks, int64_t count, const uint32_t* key, uint64_t* sums) {
  const auto* from = static_cast<const char*>(blocks);
  for (int64_t b = 0; b < count; ++b) {
    __m512i first = _mm512_setzero_si512(), second = first;
    for (int64_t i = 0; i < block_bytes / 4; i += 16, from += 64) {
      const __m512i x = _mm512_loadu_si512(from);
      first = _mm512_add_epi64(first, products(x, _mm512_loadu_si512(key + i)));
      second = _mm512_add_epi64(second, products(x, _mm512_loadu_si512(key + i + 4)));
    }
    *sums++ = sum_of(first);
    *sums++ = sum_of(second);
  }
}

}  // namespace volnet::digest::VOLNET_ISA
#include "isa/avx512_end.h"

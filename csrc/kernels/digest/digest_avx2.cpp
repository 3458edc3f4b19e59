#include <immintrin.h>

#include <cstdint>

#include "kernels/digest/digest.h"

#include "isa/avx2_begin.h"
namespace volnet::digest::VOLNET_ISA {
namespace {

inline __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

inline __m256i products(__m256i x, __m256i key) {
  const __m256i sum = _mm256_add_epi32(x, key);
  return _mm256_mul_epu32(sum, _mm256_srli_epi64(sum, 32));
}

inline uint64_t total(__m256i sums) {
  const __m128i two = _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  return static_cast<uint64_t>(_mm_extract_epi64(two, 0)) + static_cast<uint64_t>(_mm_extract_epi64(two, 1));
}

}  // namespace

void block_sums(const void* blocks, int64_t count, const uint32_t* key, uint64_t* sums) {
  const auto* from = static_cast<const char*>(blocks);
  for (int64_t b = 0; b < count; ++b) {
    __m256i first = _mm256_setzero_si256(), second = first;
    for (int64_t i = 0; i < block_bytes / 4; i += 8, from += 32) {
      const __m256i x = load(from);
      first = _mm256_add_epi64(first, products(x, load(key + i)));
      second = _mm256_add_epi64(second, products(x, load(key + i + 4)));
    }
    *sums++ = total(first);
    *sums++ = total(second);
  }
}

}  // namespace volnet::digest::VOLNET_ISA
#include "isa/avx2_end.h"

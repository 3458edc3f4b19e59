#include <cstdint>
#include <cstring>

#include "kernels/digest/digest.h"

#include "isa/scalar_begin.h"
namespace volnet::digest::VOLNET_ISA {

void block_sums(const void* blocks, int64_t count, const uint32_t* key, uint64_t* sums) {
  const auto* from = static_cast<const char*>(blocks);
  for (int64_t b = 0; b < count; ++b) {
    uint64_t first = 0, second = 0;
    for (int64_t i = 0; i < block_bytes / 4; i += 2, from += 8) {
      uint32_t x[2];
      std::memcpy(x, from, 8);
      first += uint64_t{x[0] + key[i]} * (x[1] + key[i + 1]);
      second += uint64_t{x[0] + key[i + 4]} * (x[1] + key[i + 5]);
    }
    *sums++ = first;
    *sums++ = second;
  }
}

}  // namespace volnet::digest::VOLNET_ISA
#include "isa/scalar_end.h"

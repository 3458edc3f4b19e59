// A 128-bit digest of memory, by which a change of weights is noticed: every bit counts, at the speed of
// memory.
//
// Blocks of 256 words of 32 bits are hashed by NH, twice with shifted keys:
//   NH(x) = sum over i of (x[2i] + k[2i] mod 2^32) * (x[2i + 1] + k[2i + 1] mod 2^32)   mod 2^64
// and each of the two sequences of sums by a polynomial modulo 2^61 - 1. Black, Halevi, Krawczyk, Krovetz and
// Rogaway, "UMAC: Fast and Secure Message Authentication", 1999: two different inputs of one length share the
// sums of a block with a chance of 2^-64 for random keys. The keys are fixed, so this is no defence against
// someone who makes up weights to collide. All levels give the same digest.
#pragma once

#include <cstdint>

#include "isa/dispatch.h"

namespace volnet::digest {

struct Digest {
  uint64_t first = 0, second = 0;

  bool operator==(const Digest&) const = default;
};

inline constexpr int64_t block_bytes = 1024;

// The two NH sums of every block; sums[2 * b] and sums[2 * b + 1]. The key has key_words words.
inline constexpr int64_t key_words = block_bytes / 4 + 4;
using BlockSums = void (*)(const void* blocks, int64_t count, const uint32_t* key, uint64_t* sums);

namespace scalar {
void block_sums(const void* blocks, int64_t count, const uint32_t* key, uint64_t* sums);
}
namespace avx2 {
void block_sums(const void* blocks, int64_t count, const uint32_t* key, uint64_t* sums);
}
namespace avx512 {
void block_sums(const void* blocks, int64_t count, const uint32_t* key, uint64_t* sums);
}

extern const isa::KernelTable<BlockSums> block_sums;

// Extends `digest`, which starts as Digest{}, by `bytes` more; what does not fill a block is padded with
// zeros.
void extend(BlockSums kernel, const void* data, int64_t bytes, Digest& digest);

}  // namespace volnet::digest

#include "kernels/digest/digest.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace volnet::digest {
namespace {

// The generator splitmix64 by Steele, Lea and Flood, 2014.
constexpr uint64_t next_random(uint64_t& state) {
  uint64_t z = state += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

constexpr uint64_t prime = (uint64_t{1} << 61) - 1;

struct Keys {
  alignas(64) std::array<uint32_t, key_words> words{};
  uint64_t first = 0, second = 0;  // where the polynomials are evaluated

  constexpr Keys() {
    uint64_t state = 1;
    for (uint32_t& word : words) word = static_cast<uint32_t>(next_random(state) >> 32);
    first = next_random(state) % prime;
    second = next_random(state) % prime;
  }
};
constexpr Keys keys;

// (sum * at + value) mod 2^61 - 1; sum < 2^61, value < 2^32.
uint64_t horner(uint64_t sum, uint64_t at, uint64_t value) {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(sum) * at + value;
  const uint64_t folded = static_cast<uint64_t>(product & prime) + static_cast<uint64_t>(product >> 61);
  return folded >= prime ? folded - prime : folded;
}

void absorb(const uint64_t* sums, int64_t count, Digest& digest) {
  for (int64_t b = 0; b < count; ++b, sums += 2) {
    digest.first = horner(horner(digest.first, keys.first, sums[0] >> 32), keys.first, sums[0] & 0xffffffff);
    digest.second =
        horner(horner(digest.second, keys.second, sums[1] >> 32), keys.second, sums[1] & 0xffffffff);
  }
}

}  // namespace

const isa::KernelTable<BlockSums> block_sums{
    {"digest_scalar", isa::Level::scalar, scalar::block_sums},
    {"digest_avx2", isa::Level::avx2, avx2::block_sums},
    {"digest_avx512", isa::Level::avx512, avx512::block_sums},
};

void extend(BlockSums kernel, const void* data, int64_t bytes, Digest& digest) {
  constexpr int64_t at_once = 16;
  std::array<uint64_t, 2 * at_once> sums;
  const auto* from = static_cast<const char*>(data);
  for (; bytes >= block_bytes;) {
    const int64_t count = std::min(bytes / block_bytes, at_once);
    kernel(from, count, keys.words.data(), sums.data());
    absorb(sums.data(), count, digest);
    from += count * block_bytes;
    bytes -= count * block_bytes;
  }
  if (bytes > 0) {
    alignas(64) std::array<char, block_bytes> last{};
    std::memcpy(last.data(), from, static_cast<size_t>(bytes));
    kernel(last.data(), 1, keys.words.data(), sums.data());
    absorb(sums.data(), 1, digest);
  }
}

}  // namespace volnet::digest

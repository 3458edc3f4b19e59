#include <array>
#include <cstring>
#include <utility>

#include "kernels/nms3d/nms3d.h"

namespace volnet::nms3d {

uint64_t decreasing_key(float score) {
  const float zero_without_sign = score + 0.0f;
  uint32_t bits;
  std::memcpy(&bits, &zero_without_sign, sizeof bits);
  return (bits >> 31) ? bits : ~bits & 0x7fffffffu;
}

uint64_t decreasing_key(double score) {
  const double zero_without_sign = score + 0.0;
  uint64_t bits;
  std::memcpy(&bits, &zero_without_sign, sizeof bits);
  return (bits >> 63) ? bits : ~bits & 0x7fffffffffffffffu;
}

// Radix sort, least significant digit first; digits that are the same everywhere are skipped.
void stable_order(uint64_t* keys, int64_t* order, int64_t count, uint64_t* key_scratch,
                  int64_t* order_scratch) {
  constexpr int digit_bits = 11;
  constexpr uint64_t digits = uint64_t{1} << digit_bits;
  uint64_t all = ~uint64_t{0}, any = 0;
  for (int64_t i = 0; i < count; ++i) {
    all &= keys[i];
    any |= keys[i];
  }
  uint64_t *from_keys = keys, *to_keys = key_scratch;
  int64_t *from = order, *to = order_scratch;
  for (int shift = 0; shift < 64; shift += digit_bits) {
    if ((((all ^ any) >> shift) & (digits - 1)) == 0) continue;
    std::array<int64_t, digits> next{};
    for (int64_t i = 0; i < count; ++i) ++next[(from_keys[i] >> shift) & (digits - 1)];
    int64_t sum = 0;
    for (int64_t& n : next) sum += std::exchange(n, sum);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t place = next[(from_keys[i] >> shift) & (digits - 1)]++;
      to_keys[place] = from_keys[i];
      to[place] = from[i];
    }
    std::swap(from_keys, to_keys);
    std::swap(from, to);
  }
  if (from != order) std::memcpy(order, from, static_cast<size_t>(count) * sizeof *order);
}

}  // namespace volnet::nms3d

#include "isa/isa.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace volnet::isa {
namespace {

struct Registers {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf = 0) {
  Registers r;
  if (__get_cpuid_max(leaf & 0x80000000u, nullptr) < leaf) return r;
  __cpuid_count(leaf, subleaf, r.a, r.b, r.c, r.d);
  return r;
}

uint64_t xcr0() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

bool bit(uint32_t word, int index) { return (word >> index) & 1u; }

// Linux saves the large tile registers only for processes that ask; threads and children inherit the right.
bool tiles_permitted() {
  constexpr int64_t request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

Level detect() {
  const Registers l1 = cpuid(1), l7 = cpuid(7), l71 = cpuid(7, 1);
  const bool osxsave = bit(l1.c, 27), fma = bit(l1.c, 12), avx = bit(l1.c, 28), avx2 = bit(l7.b, 5);
  if (!osxsave || !avx || !fma || !avx2) return Level::scalar;
  constexpr uint64_t ymm_state = 0x6, zmm_state = 0xe6, tile_state = 0x60000;
  const uint64_t saved = xcr0();
  if ((saved & ymm_state) != ymm_state) return Level::scalar;
  const bool avx512 = bit(l7.b, 16) && bit(l7.b, 17) && bit(l7.b, 30) && bit(l7.b, 31);  // F, DQ, BW, VL
  if (!avx512 || (saved & zmm_state) != zmm_state) return Level::avx2;
  if (!bit(l71.a, 5)) return Level::avx512;
  const bool amx_bf16 = bit(l7.d, 22) && bit(l7.d, 24);
  const bool amx = amx_bf16 && (saved & tile_state) == tile_state && tiles_permitted();
  return amx ? Level::amx : Level::avx512_bf16;
}

Level environment_cap() {
  const char* value = std::getenv("VOLNET_MAX_ISA");
  return value == nullptr || *value == '\0' ? Level::amx : parse(value);
}

thread_local Level thread_cap = Level::amx;

}  // namespace

Level parse(const std::string& name) {
  for (int i = 0; i < level_count; ++i) {
    if (name == level_names[static_cast<size_t>(i)]) return static_cast<Level>(i);
  }
  throw std::invalid_argument("unknown instruction set '" + name +
                              "': expected scalar, avx2, avx512, avx512_bf16 or amx");
}

Level detected() {
  static const Level level = detect();
  return level;
}

Level active() {
  static const Level cap = environment_cap();
  return std::min({detected(), cap, thread_cap});
}

Level set_cap(Level cap) {
  const Level previous = thread_cap;
  thread_cap = cap;
  return previous;
}

std::string cpu_brand() {
  char brand[49] = {};
  for (uint32_t i = 0; i < 3; ++i) {
    const Registers r = cpuid(0x80000002u + i);
    std::memcpy(brand + 16 * i, &r, 16);
  }
  return brand;
}

}  // namespace volnet::isa

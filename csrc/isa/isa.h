// Which instruction sets this CPU and its operating system offer, and which of them volnet may use.
#pragma once

#include <array>
#include <string>
#include <vector>

namespace volnet::isa {

enum class Level : int { scalar = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3, amx = 4 };
inline constexpr int level_count = 5;
inline constexpr std::array<const char*, level_count> level_names = {"scalar", "avx2", "avx512",
                                                                     "avx512_bf16", "amx"};

inline const char* name(Level level) { return level_names[static_cast<size_t>(level)]; }

// The highest level this machine can run: CPUID says the unit exists, XCR0 that the system saves its
// registers.
Level detected();

// The highest level in use: the detected one, capped by VOLNET_MAX_ISA and by set_cap on this thread.
Level active();

// Caps the level on the calling thread and returns the cap that was in force. Raises std::invalid_argument
// for a name that is no level.
Level set_cap(Level cap);
Level parse(const std::string& name);

std::string cpu_brand();

}  // namespace volnet::isa

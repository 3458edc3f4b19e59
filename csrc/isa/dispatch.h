// Kernel tables. Each operator lists its kernels once, from scalar upwards; the same list dispatches, is
// shown by `volnet info`, and counts its calls, so that a test can prove which kernel ran.
#pragma once

#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "isa/isa.h"

namespace volnet::isa {

struct KernelInfo {
  std::string name;  // operator, dtype, algorithm or tile, ISA: "conv3d_f32_direct_avx512"
  Level level;
  std::atomic<int64_t> calls{0};

  KernelInfo(std::string name, Level level);
};

std::vector<const KernelInfo*> registered_kernels();

template <class Function>
class KernelTable {
 public:
  struct Line {
    const char* name;
    Level level;
    Function run;
  };

  KernelTable(std::initializer_list<Line> lines) {
    for (const Line& line : lines) {
      entries_.push_back(std::make_unique<Entry>(line));
    }
  }

  // The kernel of the highest level not above the active one. A table starts with its scalar kernel, so there
  // is always one.
  Function best() const {
    Entry& entry = chosen();
    entry.info.calls.fetch_add(1, std::memory_order_relaxed);
    return entry.run;
  }

  // What best() would take, by name and without counting a call.
  std::pair<std::string, Function> preview() const { return {chosen().info.name, chosen().run}; }

 private:
  struct Entry {
    KernelInfo info;
    Function run;
    explicit Entry(const Line& line) : info(line.name, line.level), run(line.run) {}
  };

  Entry& chosen() const {
    const Level limit = active();
    Entry* chosen = entries_.front().get();
    for (const auto& entry : entries_) {
      if (entry->info.level <= limit) chosen = entry.get();
    }
    return *chosen;
  }

  std::vector<std::unique_ptr<Entry>> entries_;
};

}  // namespace volnet::isa

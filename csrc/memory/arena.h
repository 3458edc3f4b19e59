// Large blocks: cut from regions of address space where they fit best, and joined with their free neighbours
// when they come back, so that memory of one size serves requests of another.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <set>
#include <unordered_map>
#include <utility>

#include "memory/system.h"

namespace volnet::memory {

// Not thread-safe: the pool holds a lock.
class Arena {
 public:
  // Blocks begin at multiples of `granule` and are as many granules long; regions have `least_region` bytes
  // at least.
  Arena(int64_t granule, int64_t least_region) : granule_(granule), least_region_(least_region) {}

  int64_t rounded(int64_t bytes) const { return (bytes + granule_ - 1) / granule_ * granule_; }

  // A free block that has memory, or null.
  char* take_cached(int64_t size);
  // A block that has no memory yet, or null where the system refuses address space.
  char* take_fresh(int64_t size);
  void give_back(char* block);

  int64_t cached() const { return cached_; }
  void trim();

 private:
  struct Range {
    int64_t size;
    Mapping* region;
    bool has_memory;
  };
  using Ranges = std::map<char*, Range>;
  using BySize = std::set<std::pair<int64_t, char*>>;

  char* cut(BySize& by_size, int64_t size);
  void add_free(char* begin, Range range);
  void remove_free(Ranges::iterator range);

  int64_t granule_, least_region_;
  std::list<Mapping> regions_;
  Ranges free_;
  BySize cached_by_size_, fresh_by_size_;
  std::unordered_map<const void*, Range> used_;
  int64_t cached_ = 0, mapped_ = 0;
};

}  // namespace volnet::memory

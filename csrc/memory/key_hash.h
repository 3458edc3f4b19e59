// Hash of a key that is a list of numbers, for std::unordered_map.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace volnet {

struct KeyHash {
  size_t operator()(const std::vector<int64_t>& key) const {
    uint64_t hash = key.size();
    for (const int64_t word : key) {
      hash = (hash ^ static_cast<uint64_t>(word)) * 0x9e3779b97f4a7c15;
      hash ^= hash >> 29;
    }
    return hash;
  }
};

}  // namespace volnet

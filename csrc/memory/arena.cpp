#include "memory/arena.h"

#include <algorithm>
#include <iterator>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace volnet::memory {

void Arena::remove_free(Ranges::iterator range) {
  const auto& [begin, r] = *range;
  (r.has_memory ? cached_by_size_ : fresh_by_size_).erase({r.size, begin});
  if (r.has_memory) cached_ -= r.size;
  free_.erase(range);
}

// Joined with its neighbours, if they have memory as it has.
void Arena::add_free(char* begin, Range range) {
  const auto joins = [&](const Range& other) {
    return other.region == range.region && other.has_memory == range.has_memory;
  };
  const auto next = free_.lower_bound(begin);
  if (next != free_.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second.size == begin && joins(before->second)) {
      begin = before->first;
      range.size += before->second.size;
      remove_free(before);
    }
  }
  if (next != free_.end() && begin + range.size == next->first && joins(next->second)) {
    range.size += next->second.size;
    remove_free(next);
  }
  free_.emplace(begin, range);
  (range.has_memory ? cached_by_size_ : fresh_by_size_).emplace(range.size, begin);
  if (range.has_memory) cached_ += range.size;
}

// The smallest free range that is large enough; what it has more stays free.
char* Arena::cut(BySize& by_size, int64_t size) {
  const auto found = by_size.lower_bound({size, nullptr});
  if (found == by_size.end()) return nullptr;
  const auto range = free_.find(found->second);
  char* block = range->first;
  Range rest = range->second;
  remove_free(range);
  used_[block] = {size, rest.region, true};
  rest.size -= size;
  if (rest.size > 0) add_free(block + size, rest);
  return block;
}

char* Arena::take_cached(int64_t size) { return cut(cached_by_size_, size); }

char* Arena::take_fresh(int64_t size) {
  const auto add_region = [&](const Mapping& mapping) {
    if (mapping.begin == nullptr) return false;
    regions_.push_back(mapping);
    mapped_ += mapping.size;
    add_free(mapping.begin, {mapping.size, &regions_.back(), false});
    return true;
  };
  const int64_t pages = (size + huge_page - 1) / huge_page * huge_page;
  if (add_region(map_reserved_pages(pages))) return cut(fresh_by_size_, size);
  if (char* block = cut(fresh_by_size_, size)) return block;
  // Regions that double keep their number small; where so much address space is refused, what is needed does.
  if (add_region(map_reserved_pages(pages)) ||
      add_region(map_pages(std::max({pages, least_region_, mapped_}))) || add_region(map_pages(pages))) {
    return cut(fresh_by_size_, size);
  }
  return nullptr;
}

void Arena::give_back(char* block) {
  const auto found = used_.find(block);
  const Range range = found->second;
  used_.erase(found);
  add_free(block, range);
}

void Arena::trim() {
  std::vector<std::pair<char*, Range>> cached;
  for (const auto& [begin, range] : free_) {
    if (range.has_memory) cached.emplace_back(begin, range);
  }
  for (auto& [begin, range] : cached) {
    const bool whole_region = range.size == range.region->size;
    if (range.region->reserved_pages && !whole_region) continue;  // goes back as a whole only
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(begin, static_cast<size_t>(range.size));
#endif
    remove_free(free_.find(begin));
    if (range.region->reserved_pages) {
      unmap(*range.region);
      mapped_ -= range.size;
      regions_.remove_if([&](const Mapping& region) { return &region == range.region; });
    } else {
      discard(begin, range.size);
      range.has_memory = false;
      add_free(begin, range);
    }
  }
}

}  // namespace volnet::memory

#include "memory/pool.h"

#include <pthread.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdlib>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace volnet::memory {
namespace {

constexpr int64_t huge_page = int64_t{2} << 20;
constexpr int64_t mapped_from = int64_t{1} << 20;

// Sizes grow in eighths of a power of two, so a block is at most 12.5 % larger than what was asked for
// (small blocks are at least 64 bytes, mapped ones whole huge pages).
int64_t size_class(int64_t bytes) {
  const int64_t least = bytes >= mapped_from ? huge_page : 64;
  const auto power = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(std::max(bytes, least))));
  const int64_t step = std::max(power / 8, least);
  return (std::max<int64_t>(bytes, 1) + step - 1) / step * step;
}

void* map_huge(int64_t bytes) {
  const auto length = static_cast<size_t>(bytes + huge_page);
  void* region = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (region == MAP_FAILED) return nullptr;
  const auto begin = reinterpret_cast<uintptr_t>(region);
  const uintptr_t aligned = (begin + huge_page - 1) / huge_page * huge_page;
  const uintptr_t end = aligned + static_cast<uintptr_t>(bytes);
  if (aligned > begin) munmap(region, aligned - begin);
  if (begin + length > end) munmap(reinterpret_cast<void*>(end), begin + length - end);
  auto* block = reinterpret_cast<void*>(aligned);
  madvise(block, static_cast<size_t>(bytes), MADV_HUGEPAGE);  // a kernel without huge pages still works
  return block;
}

void* from_system(int64_t bytes) {
  return bytes >= mapped_from ? map_huge(bytes) : std::aligned_alloc(64, static_cast<size_t>(bytes));
}

void to_system(void* block, int64_t bytes) {
  if (bytes >= mapped_from) {
    munmap(block, static_cast<size_t>(bytes));
  } else {
    std::free(block);
  }
}

// Under AddressSanitizer only the bytes that were asked for may be touched: not the rest of their size class,
// not a free block.
#ifdef __SANITIZE_ADDRESS__
void open_block(void* block, int64_t bytes, int64_t size) {
  __asan_unpoison_memory_region(block, static_cast<size_t>(bytes));
  __asan_poison_memory_region(static_cast<char*>(block) + bytes, static_cast<size_t>(size - bytes));
}
void close_block(void* block, int64_t size) { __asan_poison_memory_region(block, static_cast<size_t>(size)); }
#else
void open_block(void*, int64_t, int64_t) {}
void close_block(void*, int64_t) {}
#endif

std::string mebibytes(int64_t bytes) { return std::to_string((bytes + (1 << 20) - 1) >> 20) + " MiB"; }

class Pool {
 public:
  void* allocate(int64_t bytes, const std::string& what) {
    const int64_t size = size_class(bytes);
    std::unique_lock lock(mutex_);
    ++stats_.allocations;
    void* block = take(size);
    if (block == nullptr) {
      lock.unlock();
      shed();  // releases blocks, so it must not find the pool locked
      lock.lock();
      block = take(size);
    }
    if (block == nullptr) fail(size, what);
    open_block(block, bytes, size);
    sizes_[block] = size;
    stats_.in_use += size;
    stats_.peak = std::max(stats_.peak, stats_.in_use);
    return block;
  }

  void release(void* block) {
    const std::lock_guard lock(mutex_);
    const auto it = sizes_.find(block);
    const int64_t size = it->second;
    sizes_.erase(it);
    stats_.in_use -= size;
    stats_.cached += size;
    close_block(block, size);
    free_[size].push_back(block);
  }

  int64_t trim() {
    shed();
    const std::lock_guard lock(mutex_);
    return trim_locked();
  }

  void on_shortage(void (*shed)()) { shed_.store(shed); }

  void set_limit(int64_t bytes) {
    if (bytes > 0) shed();
    const std::lock_guard lock(mutex_);
    if (bytes > 0 && stats_.in_use > bytes) {
      throw OutOfMemory("cannot limit the pool to " + mebibytes(bytes) + ": " + mebibytes(stats_.in_use) +
                        " are in use");
    }
    stats_.limit = bytes;
    if (bytes > 0 && stats_.in_use + stats_.cached > bytes) trim_locked();
  }

  Stats stats() {
    const std::lock_guard lock(mutex_);
    return stats_;
  }

  std::mutex& mutex() { return mutex_; }

 private:
  void shed() const {
    if (void (*run)() = shed_.load(); run != nullptr) run();
  }

  void* take_cached(int64_t size) {
    const auto it = free_.find(size);
    if (it == free_.end() || it->second.empty()) return nullptr;
    void* block = it->second.back();
    it->second.pop_back();
    stats_.cached -= size;
    return block;
  }

  void* take(int64_t size) {
    void* cached = take_cached(size);
    if (cached != nullptr) return cached;
    const auto fits = [&] {
      return stats_.limit == 0 || stats_.in_use + stats_.cached + size <= stats_.limit;
    };
    if (!fits()) trim_locked();
    void* block = fits() ? from_system(size) : nullptr;
    if (block == nullptr && fits()) {
      trim_locked();
      block = from_system(size);
    }
    stats_.from_system += block != nullptr;
    return block;
  }

  [[noreturn]] void fail(int64_t size, const std::string& what) const {
    throw OutOfMemory(what + " asked for " + mebibytes(size) + ": " + mebibytes(stats_.in_use) +
                      " are in use" +
                      (stats_.limit > 0 ? ", the limit is " + mebibytes(stats_.limit) : std::string()) +
                      ". A smaller batch or volume, bfloat16 storage, or a higher limit would help.");
  }

  int64_t trim_locked() {
    const int64_t freed = stats_.cached;
    for (auto& [size, blocks] : free_) {
      for (void* block : blocks) {
        open_block(block, size, size);
        to_system(block, size);
      }
    }
    free_.clear();
    stats_.cached = 0;
    return freed;
  }

  std::mutex mutex_;
  std::atomic<void (*)()> shed_{nullptr};
  Stats stats_;
  std::unordered_map<void*, int64_t> sizes_;
  std::unordered_map<int64_t, std::vector<void*>> free_;
};

// Never destroyed: tensors may be freed while the interpreter goes down.
Pool& pool() {
  static Pool* instance = [] {
    auto* made = new Pool;
    // A child of fork() must not inherit a lock that some thread of the parent held.
    pthread_atfork([] { pool().mutex().lock(); }, [] { pool().mutex().unlock(); },
                   [] { pool().mutex().unlock(); });
    return made;
  }();
  return *instance;
}

}  // namespace

void* allocate(int64_t bytes, const std::string& what) { return pool().allocate(bytes, what); }
void release(void* block) noexcept { pool().release(block); }
int64_t trim() { return pool().trim(); }
void on_shortage(void (*shed)()) { pool().on_shortage(shed); }
void set_limit(int64_t bytes) { pool().set_limit(bytes); }
Stats stats() { return pool().stats(); }

}  // namespace volnet::memory

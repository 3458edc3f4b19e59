#include "memory/pool.h"

#include <pthread.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <unordered_map>
#include <unordered_set>

#include "memory/arena.h"

namespace volnet::memory {
namespace {

constexpr int64_t mebibyte = int64_t{1} << 20;
constexpr int64_t small_below = mebibyte, large_from = 16 * mebibyte;
constexpr int64_t thread_keeps = 4 * mebibyte;   // bytes of small blocks
constexpr int64_t checked_from = 16 * mebibyte;  // requests that are compared with the system's free memory

// Under AddressSanitizer only the bytes that were asked for may be touched: not the rest of a block, not a
// free one.
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

std::string mebibytes(int64_t bytes) { return std::to_string((bytes + mebibyte - 1) >> 20) + " MiB"; }

// Bytes in use now, and the most so far.
struct Level {
  std::atomic<int64_t> in_use{0}, peak{0}, allocations{0};

  void add(int64_t bytes) {
    allocations.fetch_add(1, std::memory_order_relaxed);
    const int64_t now = in_use.fetch_add(bytes, std::memory_order_relaxed) + bytes;
    int64_t before = peak.load(std::memory_order_relaxed);
    while (now > before && !peak.compare_exchange_weak(before, now, std::memory_order_relaxed)) {
    }
  }
  void remove(int64_t bytes) { in_use.fetch_sub(bytes, std::memory_order_relaxed); }
};

// Operators by name; a literal is looked up once a thread.
class Operators {
 public:
  struct Operator {
    std::string name;
    Level level;
  };

  Operator* find(const char* name) {
    thread_local std::unordered_map<const char*, Operator*> known;
    Operator*& found = known[name];
    if (found == nullptr) {
      const std::lock_guard lock(mutex_);
      found = &by_name_[name];
      found->name = name;
    }
    return found;
  }

  std::vector<Use> uses() {
    const std::lock_guard lock(mutex_);
    std::vector<Use> result;
    for (const auto& [name, op] : by_name_) {
      result.push_back({name, op.level.in_use, op.level.peak, op.level.allocations});
    }
    return result;
  }

  void reset_peaks() {
    const std::lock_guard lock(mutex_);
    for (auto& [name, op] : by_name_) op.level.peak = op.level.in_use.load();
  }

  std::mutex& mutex() { return mutex_; }

 private:
  std::mutex mutex_;
  std::unordered_map<std::string, Operator> by_name_;
};

// In front of a small block; large ones have it in a table.
struct alignas(64) Header {
  int64_t size;  // of the block, header and all
  Operators::Operator* op;
};

// Sizes grow in eighths of a power of two.
int64_t size_class(int64_t bytes) {
  const auto power = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(bytes)));
  const int64_t step = std::max<int64_t>(power / 8, 64);
  return (bytes + step - 1) / step * step;
}

// Free small blocks by size.
class SmallBlocks {
 public:
  Header* take(int64_t size) {
    const auto found = free_.find(size);
    if (found == free_.end() || found->second.empty()) return nullptr;
    Header* block = found->second.back();
    found->second.pop_back();
    bytes_ -= size;
    return block;
  }
  void keep(Header* block) {
    free_[block->size].push_back(block);
    bytes_ += block->size;
  }
  template <class F>
  void drain(const F& f) {
    for (auto& [size, blocks] : free_) {
      for (Header* block : blocks) f(block);
    }
    free_.clear();
    bytes_ = 0;
  }
  int64_t bytes() const { return bytes_; }

 private:
  std::unordered_map<int64_t, std::vector<Header*>> free_;
  int64_t bytes_ = 0;
};

void free_small(Header* block) {
  open_block(block + 1, block->size - static_cast<int64_t>(sizeof(Header)),
             block->size - static_cast<int64_t>(sizeof(Header)));
  std::free(block);
}

class Pool {
 public:
  void* allocate(int64_t bytes, const char* op, std::span<const int64_t> shape) {
    Operators::Operator* const user = operators_.find(op);
    const bool small = bytes < small_below - static_cast<int64_t>(sizeof(Header));
    const int64_t size =
        small ? size_class(bytes + static_cast<int64_t>(sizeof(Header))) : arena_of(bytes).rounded(bytes);
    void* block = small ? take_small(size, user) : take_large(size, bytes, user);
    if (block == nullptr) {
      shed();  // releases blocks, so it must not find the pool locked
      block = small ? take_small(size, user) : take_large(size, bytes, user);
    }
    if (block == nullptr) fail(bytes, op, shape);
    open_block(block, bytes, small ? size - static_cast<int64_t>(sizeof(Header)) : size);
    total_.add(size);
    user->level.add(size);
    return block;
  }

  void release(void* block) {
    if (is_large(block)) {
      const std::lock_guard lock(mutex_);
      const auto found = large_blocks_.find(block);
      const Large large = found->second;
      large_blocks_.erase(found);
      close_block(block, large.size);
      large.arena->give_back(static_cast<char*>(block));
      account_release(large.size, large.op);
      return;
    }
    Header* const header = static_cast<Header*>(block) - 1;
    close_block(block, header->size - static_cast<int64_t>(sizeof(Header)));
    account_release(header->size, header->op);
    keep_small(header);
  }

  int64_t trim() {
    shed();
    const std::lock_guard lock(mutex_);
    const int64_t before = cached_locked();
    trim_locked();
    return before - cached_locked();
  }

  void on_shortage(void (*shed)()) { shed_.store(shed); }

  void set_limit(int64_t bytes) {
    if (bytes > 0) shed();
    const std::lock_guard lock(mutex_);
    if (bytes > 0 && total_.in_use > bytes) {
      throw OutOfMemory("cannot limit the pool to " + mebibytes(bytes) + ": " + mebibytes(total_.in_use) +
                        " are in use");
    }
    limit_ = bytes;
    if (bytes > 0 && total_.in_use + cached_locked() > bytes) trim_locked();
  }

  void set_soft_limit(int64_t bytes) {
    const std::lock_guard lock(mutex_);
    soft_limit_ = bytes;
    if (bytes > 0 && total_.in_use + cached_locked() > bytes) trim_locked();
  }

  Stats stats() {
    const std::lock_guard lock(mutex_);
    return {total_.in_use, cached_locked(), total_.peak, limit_, total_.allocations, from_system_};
  }

  std::vector<Use> uses() { return operators_.uses(); }

  void reset_peak() {
    total_.peak = total_.in_use.load();
    operators_.reset_peaks();
  }

  // Everything that a fork must not catch half done.
  void lock_all() {
    operators_.mutex().lock();
    mutex_.lock();
    for (ThreadCache* cache : caches_) cache->mutex.lock();
  }
  // The child has only the thread that forked.
  void unlock_child() {
    for (ThreadCache* cache : caches_) {
      cache->mutex.unlock();
      if (cache != this_thread()) cache->blocks.drain([this](Header* block) { shared_.keep(block); });
    }
    caches_.clear();
    if (this_thread() != nullptr) caches_.insert(this_thread());
    mutex_.unlock();
    operators_.mutex().unlock();
  }
  void unlock_all() {
    for (ThreadCache* cache : caches_) cache->mutex.unlock();
    mutex_.unlock();
    operators_.mutex().unlock();
  }

 private:
  struct Large {
    int64_t size;
    Arena* arena;
    Operators::Operator* op;
  };

  // Its mutex is taken after the pool's own where both are.
  struct ThreadCache {
    std::mutex mutex;
    SmallBlocks blocks;
  };

  // Of this thread, or null while it ends: what it had the others may use.
  struct ThreadEnd {
    Pool* pool = nullptr;
    ThreadCache cache;
    ~ThreadEnd() {
      const std::lock_guard lock(pool->mutex_);
      cache.blocks.drain([&](Header* block) { pool->shared_.keep(block); });
      pool->caches_.erase(&cache);
      this_thread() = nullptr;
      ended() = true;
    }
  };
  static ThreadCache*& this_thread() {
    thread_local ThreadCache* cache = nullptr;
    return cache;
  }
  static bool& ended() {
    thread_local bool value = false;
    return value;
  }
  ThreadCache* thread_cache() {
    if (this_thread() == nullptr && !ended()) {
      thread_local ThreadEnd end;
      end.pool = this;
      const std::lock_guard lock(mutex_);
      caches_.insert(&end.cache);
      this_thread() = &end.cache;
    }
    return this_thread();
  }

  void shed() const {
    if (void (*run)() = shed_.load(); run != nullptr) run();
  }

  Arena& arena_of(int64_t bytes) { return bytes >= large_from ? large_ : mid_; }

  // Blocks of the arenas begin at whole 64 KiB; small ones behind their header, and never there.
  static bool is_large(const void* block) { return reinterpret_cast<uintptr_t>(block) % (64 << 10) == 0; }

  void* take_small(int64_t size, Operators::Operator* user) {
    Header* block = nullptr;
    if (ThreadCache* cache = thread_cache(); cache != nullptr) {
      const std::lock_guard lock(cache->mutex);
      block = cache->blocks.take(size);
    }
    if (block == nullptr) {
      const std::lock_guard lock(mutex_);
      block = shared_.take(size);
      if (block == nullptr && make_room_locked(size)) block = new_small_locked(size);
    }
    if (block == nullptr) return nullptr;
    block->op = user;
    return block + 1;
  }

  Header* new_small_locked(int64_t size) {
    // A page of 64 KiB begins with no header, so that is_large can tell.
    auto* block = static_cast<Header*>(std::aligned_alloc(64, static_cast<size_t>(size)));
    if (block != nullptr && is_large(block + 1)) {
      Header* const other = new_small_locked(size);
      std::free(block);
      return other;
    }
    if (block == nullptr) return nullptr;
    ++from_system_;
    block->size = size;
    return block;
  }

  void keep_small(Header* block) {
    if (ThreadCache* cache = thread_cache(); cache != nullptr) {
      const std::lock_guard lock(cache->mutex);
      if (cache->blocks.bytes() + block->size <= thread_keeps) {
        cache->blocks.keep(block);
        return;
      }
    }
    const std::lock_guard lock(mutex_);
    shared_.keep(block);
  }

  void* take_large(int64_t size, int64_t bytes, Operators::Operator* user) {
    const std::lock_guard lock(mutex_);
    Arena& arena = arena_of(bytes);
    char* block = arena.take_cached(size);
    if (block == nullptr) {
      if (!make_room_locked(size)) return nullptr;
      block = arena.take_cached(size);  // the room may be one that was joined
      if (block == nullptr) block = arena.take_fresh(size);
      if (block == nullptr) return nullptr;
      ++from_system_;
    }
    large_blocks_[block] = {size, &arena, user};
    return block;
  }

  // Whether `size` bytes more may be taken from the system, free blocks given back if need be.
  bool make_room_locked(int64_t size) {
    if (soft_limit_ > 0 && total_.in_use + cached_locked() + size > soft_limit_) trim_locked();
    const auto fits = [&] {
      if (limit_ > 0 && total_.in_use + cached_locked() + size > limit_) return false;
      return size < checked_from || size <= available_bytes();
    };
    if (fits()) return true;
    trim_locked();
    return fits();
  }

  [[noreturn]] void fail(int64_t bytes, const char* op, std::span<const int64_t> shape) {
    std::string text = "volnet is out of memory: " + std::string(op);
    for (size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? " [" : ", ") + std::to_string(shape[i]);
    if (!shape.empty()) text += "]";
    text += " asked for " + mebibytes(bytes) + "; " + mebibytes(total_.in_use) + " are in use, ";
    text += limit_ > 0 ? "the pool's limit is " + mebibytes(limit_) : "the pool has no limit";
    text +=
        ", the system has " + mebibytes(available_bytes()) +
        " left. A smaller batch or volume, bfloat16 storage, or freeing tensors that are no longer needed "
        "would help";
    text += limit_ > 0 ? ", or a higher limit (volnet.memory.set_limit)." : ".";
    throw OutOfMemory(text);
  }

  int64_t cached_locked() {
    int64_t bytes = shared_.bytes() + mid_.cached() + large_.cached();
    for (ThreadCache* cache : caches_) {
      const std::lock_guard lock(cache->mutex);
      bytes += cache->blocks.bytes();
    }
    return bytes;
  }

  void trim_locked() {
    for (ThreadCache* cache : caches_) {
      const std::lock_guard lock(cache->mutex);
      cache->blocks.drain(free_small);
    }
    shared_.drain(free_small);
    mid_.trim();
    large_.trim();
  }

  void account_release(int64_t size, Operators::Operator* user) {
    total_.remove(size);
    user->level.remove(size);
  }

  std::mutex mutex_;
  std::atomic<void (*)()> shed_{nullptr};
  Operators operators_;
  Level total_;
  int64_t limit_ = 0, soft_limit_ = 0, from_system_ = 0;
  Arena mid_{64 << 10, 64 * mebibyte}, large_{huge_page, 1024 * mebibyte};
  std::unordered_map<const void*, Large> large_blocks_;  // that are in use
  SmallBlocks shared_;
  std::unordered_set<ThreadCache*> caches_;
};

// Never destroyed: tensors may be freed while the interpreter goes down.
Pool& pool() {
  static Pool* instance = [] {
    auto* made = new Pool;
    // A child of fork() must not inherit a lock that some thread of the parent held.
    pthread_atfork([] { pool().lock_all(); }, [] { pool().unlock_all(); }, [] { pool().unlock_child(); });
    return made;
  }();
  return *instance;
}

}  // namespace

void* allocate(int64_t bytes, const char* op, std::span<const int64_t> shape) {
  return pool().allocate(bytes, op, shape);
}
void release(void* block) noexcept { pool().release(block); }
int64_t trim() { return pool().trim(); }
void on_shortage(void (*shed)()) { pool().on_shortage(shed); }
void set_limit(int64_t bytes) { pool().set_limit(bytes); }
void set_soft_limit(int64_t bytes) { pool().set_soft_limit(bytes); }
Stats stats() { return pool().stats(); }
std::vector<Use> uses() { return pool().uses(); }
void reset_peak() { pool().reset_peak(); }

}  // namespace volnet::memory

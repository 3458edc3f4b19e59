// A caching pool for outputs and scratch: memory on huge pages, kept when freed, so that no operator pays
// twice for page faults.
//
// Blocks below a mebibyte have size classes and headers, come from malloc, and go through a cache of each
// thread. Larger ones come from two arenas, which cut and join them: in steps of 64 KiB, and from 16 MiB on
// in whole huge pages. None is more than 12.5 % larger than what was asked for (and 64 bytes). A page gets
// its memory when it is first written to, so on the NUMA node of the thread that computes; a block that is
// used again keeps its pages where they are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace volnet::memory {

struct Stats {
  int64_t in_use = 0;       // bytes of blocks handed out
  int64_t cached = 0;       // bytes of free blocks that are kept
  int64_t peak = 0;         // highest in_use so far, or since reset_peak
  int64_t limit = 0;        // bytes; 0: none
  int64_t allocations = 0;  // requests so far
  int64_t from_system = 0;  // those that had to ask the operating system
};

// What one operator has of it.
struct Use {
  std::string op;
  int64_t in_use = 0, peak = 0, allocations = 0;
};

class OutOfMemory : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// At least `bytes`, 64-byte aligned; on huge pages from 1 MiB on. `op`, a literal, and the shape are for the
// statistics and the error.
void* allocate(int64_t bytes, const char* op, std::span<const int64_t> shape = {});
void release(void* block) noexcept;

// Gives the free blocks back to the operating system, those first that their holders can do without (see
// on_shortage); returns how many bytes that were.
int64_t trim();

// `shed` is to release what is held for speed only. It runs on trim, and before a limit or the system's
// memory makes an allocation fail.
void on_shortage(void (*shed)());

// No more than `bytes` in use and cached together; 0 lifts the limit. Raises OutOfMemory if more is in use
// already.
void set_limit(int64_t bytes);

// Free blocks go back to the system before more than `bytes` are in use and cached together. Nothing
// fails for it. 0 lifts it.
void set_soft_limit(int64_t bytes);

Stats stats();
std::vector<Use> uses();
void reset_peak();

// Scratch of one call.
class Scratch {
 public:
  Scratch(int64_t bytes, const char* op) : block_(allocate(bytes, op)) {}
  ~Scratch() { release(block_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <class T>
  T* as() const {
    return static_cast<T*>(block_);
  }

 private:
  void* block_;
};

}  // namespace volnet::memory

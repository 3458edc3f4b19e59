// A caching pool for outputs and scratch: 2 MiB-aligned blocks on huge pages, kept when freed, so that no
// operator pays twice for page faults.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace volnet::memory {

struct Stats {
  int64_t in_use = 0;       // bytes of blocks handed out
  int64_t cached = 0;       // bytes of free blocks that are kept
  int64_t peak = 0;         // highest in_use so far
  int64_t limit = 0;        // bytes; 0: none
  int64_t allocations = 0;  // requests so far
  int64_t from_system = 0;  // those that had to ask the operating system
};

class OutOfMemory : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// At least `bytes`, 64-byte aligned; 2 MiB-aligned from 1 MiB on. `what` names the operator and shape for the
// error.
void* allocate(int64_t bytes, const std::string& what);
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

Stats stats();

// Scratch of one call.
class Scratch {
 public:
  Scratch(int64_t bytes, const std::string& what) : block_(allocate(bytes, what)) {}
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

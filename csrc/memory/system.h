// What the pool asks of the operating system.
#pragma once

#include <cstdint>

namespace volnet::memory {

constexpr int64_t huge_page = int64_t{2} << 20;

struct Mapping {
  char* begin = nullptr;  // of whole huge pages; null where the system refuses
  int64_t size = 0;
  bool reserved_pages = false;  // from hugetlbfs
};

// Address space for `bytes`, without memory yet: a page is taken from the system, and from the NUMA node of
// the thread, when it is first written to.
Mapping map_pages(int64_t bytes);

// The same on huge pages that the administrator has reserved (vm.nr_hugepages), where enough of them are
// free.
Mapping map_reserved_pages(int64_t bytes);

void unmap(const Mapping& mapping);

// Gives the memory of whole pages back; the address space stays, and reads as zeros.
void discard(char* begin, int64_t bytes);

// Bytes that the process can still take without swapping: what the system has, or the control groups allow.
int64_t available_bytes();

// Makes the C library keep what is freed, for the rest of the process, and have it on huge pages; false where
// it is not glibc.
bool retain();

}  // namespace volnet::memory

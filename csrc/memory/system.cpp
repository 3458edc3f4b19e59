#include "memory/system.h"

#include <linux/mman.h>
#include <malloc.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

namespace volnet::memory {
namespace {

// The first number of a file of the kernel's, such as a limit; none where it says "max", or is not there.
std::optional<int64_t> number_in(const std::string& path) {
  std::ifstream file(path);
  int64_t value = 0;
  if (file >> value) return value;
  return std::nullopt;
}

// A line "MemAvailable:   123 kB" of /proc/meminfo, in bytes.
std::optional<int64_t> meminfo(const std::string& name) {
  std::ifstream file("/proc/meminfo");
  for (std::string word; file >> word;) {
    int64_t kibibytes = 0;
    if (word == name && file >> kibibytes) return kibibytes << 10;
  }
  return std::nullopt;
}

// What a control group still allows: its limit without what it uses, of which the page cache can go.
std::optional<int64_t> left_in_group(const std::string& limit, const std::string& usage,
                                     const std::string& statistics, const std::string& reclaimable) {
  const auto most = number_in(limit), used = number_in(usage);
  if (!most || !used) return std::nullopt;
  int64_t cache = 0;
  std::ifstream file(statistics);
  for (std::string word; file >> word;) {
    if (word == reclaimable) file >> cache;
  }
  return std::max<int64_t>(*most - *used + cache, 0);
}

// Of the process and all groups above it, in the hierarchy at `root`.
void lower_to_groups(int64_t& available, const std::string& root, std::string group, bool unified) {
  while (true) {
    const std::string at = root + group + "/";
    const auto left =
        unified ? left_in_group(at + "memory.max", at + "memory.current", at + "memory.stat", "inactive_file")
                : left_in_group(at + "memory.limit_in_bytes", at + "memory.usage_in_bytes",
                                at + "memory.stat", "total_inactive_file");
    if (left) available = std::min(available, *left);
    if (group.empty() || group == "/") return;
    group.resize(group.rfind('/'));
  }
}

Mapping map(int64_t bytes, int flags) {
  void* begin = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
  return begin == MAP_FAILED ? Mapping{} : Mapping{static_cast<char*>(begin), bytes, false};
}

}  // namespace

Mapping map_pages(int64_t bytes) {
  const Mapping whole = map(bytes + huge_page, MAP_NORESERVE);
  if (whole.begin == nullptr) return {};
  const auto begin = reinterpret_cast<uintptr_t>(whole.begin);
  const int64_t head = static_cast<int64_t>((huge_page - begin % huge_page) % huge_page);
  char* aligned = whole.begin + head;
  if (head > 0) munmap(whole.begin, static_cast<size_t>(head));
  if (head < huge_page) munmap(aligned + bytes, static_cast<size_t>(huge_page - head));
  madvise(aligned, static_cast<size_t>(bytes), MADV_HUGEPAGE);  // a kernel without huge pages still works
  return {aligned, bytes, false};
}

Mapping map_reserved_pages(int64_t bytes) {
  const std::string pages = "/sys/kernel/mm/hugepages/hugepages-2048kB/";
  const int64_t free = number_in(pages + "free_hugepages").value_or(0);
  if ((free - number_in(pages + "resv_hugepages").value_or(0)) * huge_page < bytes) return {};
  Mapping mapping = map(bytes, MAP_HUGETLB | MAP_HUGE_2MB);
  mapping.reserved_pages = true;
  return mapping;
}

void unmap(const Mapping& mapping) { munmap(mapping.begin, static_cast<size_t>(mapping.size)); }

void discard(char* begin, int64_t bytes) { madvise(begin, static_cast<size_t>(bytes), MADV_DONTNEED); }

int64_t available_bytes() {
  int64_t available = meminfo("MemAvailable:").value_or(std::numeric_limits<int64_t>::max());
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // "0::/group", or "4:memory:/group" of version 1
    const auto first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1),
                      group = line.substr(second + 1);
    if (controllers.empty()) lower_to_groups(available, "/sys/fs/cgroup", group, true);
    if (controllers == "memory") lower_to_groups(available, "/sys/fs/cgroup/memory", group, false);
  }
  return available;
}

bool retain() {
#ifdef __GLIBC__
  // One heap for all threads, as those of other threads hold no large blocks; no mappings that are given back
  // with their block; and a heap that never shrinks.
  if (mallopt(M_ARENA_MAX, 1) == 0 || mallopt(M_MMAP_MAX, 0) == 0 || mallopt(M_TRIM_THRESHOLD, -1) == 0)
    return false;
  // The heap grows to this size now, without memory yet: address space that is advised once for all, because
  // glibc's own setting for huge pages is read when a process starts only.
  const int64_t size = available_bytes() / huge_page * huge_page;
  auto* block = static_cast<char*>(std::malloc(static_cast<size_t>(size)));
  if (block == nullptr) return true;
  const auto begin = (reinterpret_cast<uintptr_t>(block) + huge_page - 1) / huge_page * huge_page;
  madvise(reinterpret_cast<void*>(begin), static_cast<size_t>(size - huge_page), MADV_HUGEPAGE);
  std::free(block);
  return true;
#else
  return false;
#endif
}

}  // namespace volnet::memory

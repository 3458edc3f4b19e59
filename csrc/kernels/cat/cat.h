// Runs of bytes joined voxel by voxel, and the other way round.
//
//   joined[v] = parts[0][v], parts[1][v], ...
//
// part k is [voxels, run[k]] bytes, dense; joined is [voxels, sum of the runs]. Any alignment; nothing
// aliases.
#pragma once

#include <algorithm>
#include <cstdint>

#include "isa/dispatch.h"

namespace volnet::cat {

struct Part {
  char* data;  // only read where parts are joined
  int64_t run;
};

struct Params {
  const Part* parts;
  int64_t count;
  char* joined;  // only read where it is split
  bool stream;   // store past the caches: for results that do not fit into them
};

// Voxels [begin, end).
using Kernel = void (*)(const Params&, int64_t begin, int64_t end);
// Bytes [begin, end) of one part, as if it were alone.
using CopyKernel = void (*)(char* to, const char* from, int64_t begin, int64_t end, bool stream);

#define VOLNET_DECLARE                                   \
  void join(const Params&, int64_t begin, int64_t end);  \
  void split(const Params&, int64_t begin, int64_t end); \
  void copy(char* to, const char* from, int64_t begin, int64_t end, bool stream);
namespace scalar {
VOLNET_DECLARE
}
namespace avx2 {
VOLNET_DECLARE
}
namespace avx512 {
VOLNET_DECLARE
}
#undef VOLNET_DECLARE

extern const isa::KernelTable<Kernel> join_kernels, split_kernels;
extern const isa::KernelTable<CopyKernel> copy_kernels;

}  // namespace volnet::cat

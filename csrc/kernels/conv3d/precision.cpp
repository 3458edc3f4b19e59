#include "kernels/conv3d/precision.h"

#include <atomic>

namespace volnet::conv3d {
namespace {

std::atomic<Precision> current{Precision::high};

}  // namespace

Precision precision() { return current.load(std::memory_order_relaxed); }
void set_precision(Precision value) { current.store(value, std::memory_order_relaxed); }

}  // namespace volnet::conv3d

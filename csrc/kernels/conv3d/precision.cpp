#include "kernels/conv3d/precision.h"

#include <atomic>

namespace volnet::conv3d {
namespace {

std::atomic<Precision> current{Precision::high};
thread_local std::optional<Precision> of_thread;

}  // namespace

Precision precision() { return of_thread.value_or(current.load(std::memory_order_relaxed)); }
void set_precision(Precision value) { current.store(value, std::memory_order_relaxed); }

std::optional<Precision> thread_precision() { return of_thread; }
void set_thread_precision(std::optional<Precision> value) { of_thread = value; }

}  // namespace volnet::conv3d

#include "isa/dispatch.h"

#include <utility>

namespace volnet::isa {
namespace {

// Tables are static objects of many files: the list is made by whichever comes first.
std::vector<const KernelInfo*>& registry() {
  static auto* kernels = new std::vector<const KernelInfo*>;
  return *kernels;
}

}  // namespace

KernelInfo::KernelInfo(std::string name_, Level level_) : name(std::move(name_)), level(level_) {
  registry().push_back(this);
}

std::vector<const KernelInfo*> registered_kernels() { return registry(); }

}  // namespace volnet::isa

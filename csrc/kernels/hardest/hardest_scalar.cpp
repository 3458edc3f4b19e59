#include <algorithm>

#include "kernels/hardest/hardest.h"

#include "isa/scalar_begin.h"
namespace volnet::hardest::VOLNET_ISA {
#include "kernels/hardest/body.h"
VOLNET_DEFINE(f64, double)
}  // namespace volnet::hardest::VOLNET_ISA
#include "isa/scalar_end.h"

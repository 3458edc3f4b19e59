#include <algorithm>

#include "kernels/hardest/hardest.h"

#include "isa/avx2_begin.h"
namespace volnet::hardest::VOLNET_ISA {
#include "kernels/hardest/body.h"
}  // namespace volnet::hardest::VOLNET_ISA
#include "isa/avx2_end.h"

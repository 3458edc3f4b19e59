#include <cstring>

#include "isa/bfloat16.h"
#include "kernels/max_unpool3d/max_unpool3d.h"

#include "isa/avx2_begin.h"
namespace volnet::max_unpool3d::VOLNET_ISA {
#include "kernels/max_unpool3d/body.h"
}  // namespace volnet::max_unpool3d::VOLNET_ISA
#include "isa/avx2_end.h"

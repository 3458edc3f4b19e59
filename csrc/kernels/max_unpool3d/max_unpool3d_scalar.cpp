#include <cstring>

#include "isa/bfloat16.h"
#include "kernels/max_unpool3d/max_unpool3d.h"

#include "isa/scalar_begin.h"
namespace volnet::max_unpool3d::VOLNET_ISA {
#include "kernels/max_unpool3d/body.h"

int64_t forward_f64(const Params& p, const Slab& slab) { return forward<double>(p, slab); }
void backward_f64(const Params& p, int64_t begin, int64_t end) { backward<double>(p, begin, end); }
}  // namespace volnet::max_unpool3d::VOLNET_ISA
#include "isa/scalar_end.h"

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "isa/bfloat16.h"
#include "kernels/sample_patches/sample_patches.h"

// Nothing of the level may come before here.
#include "isa/scalar_begin.h"
namespace volnet::sample_patches::VOLNET_ISA {
#include "isa/vec_scalar.h"
#include "kernels/sample_patches/body.h"

void backward_f64(const Backward<double>& b, int64_t plane, int64_t* covering, double* row) {
  backward_plane(b, plane, covering, row);
}
}  // namespace volnet::sample_patches::VOLNET_ISA
#include "isa/scalar_end.h"

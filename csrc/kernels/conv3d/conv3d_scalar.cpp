#include "kernels/conv3d/conv3d.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "isa/bfloat16.h"

#include "isa/scalar_begin.h"

namespace volnet::conv3d::VOLNET_ISA {

#include "isa/vec_scalar.h"

constexpr int row_tile = 4;

#include "kernels/conv3d/body.h"

void direct_f64(const Convolution& call, int64_t piece, void* scratch) {
  direct_any<VecDouble, double>(call, piece, scratch);
}
void apply_inputs_f64(const AppliedInputs& call, int64_t piece, void* to) {
  apply_inputs<VecDouble, double>(call, piece, to);
}
void depthwise_f64(const Convolution& call, int64_t piece, void* scratch) {
  depthwise<VecDouble, double>(call, piece, scratch);
}
void weight_gradient_f64(const WeightGradient& call, int64_t piece, void* scratch) {
  weight_gradient<VecDouble>(call, piece, scratch);
}

}  // namespace volnet::conv3d::VOLNET_ISA

#include "isa/scalar_end.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "isa/bfloat16.h"
#include "kernels/segmentation_loss/segmentation_loss.h"

#include "isa/scalar_begin.h"
namespace volnet::segmentation_loss::VOLNET_ISA {
#include "isa/vec_scalar.h"
#include "kernels/segmentation_loss/body.h"
VOLNET_DEFINE(f64, VecDouble, double)
}  // namespace volnet::segmentation_loss::VOLNET_ISA
#include "isa/scalar_end.h"

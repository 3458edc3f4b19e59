#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "isa/bfloat16.h"
#include "kernels/segmentation_loss/segmentation_loss.h"

#include "isa/avx2_begin.h"
namespace volnet::segmentation_loss::VOLNET_ISA {
#include "isa/vec_avx2.h"
#include "kernels/segmentation_loss/body.h"
}  // namespace volnet::segmentation_loss::VOLNET_ISA
#include "isa/avx2_end.h"

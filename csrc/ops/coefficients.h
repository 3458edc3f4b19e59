// The weights and biases of norms: few numbers, in the dtype of the input or in float32.
#pragma once

#include <optional>
#include <vector>

#include "ops/tensors.h"

namespace volnet {

// `given` as float64; `missing` for all where there is none.
inline std::vector<double> coefficients(const std::optional<Tensor>& given, int64_t count, double missing,
                                        const char* op) {
  std::vector<double> values(static_cast<size_t>(count), missing);
  if (!given) return values;
  VOLNET_CHECK(given->numel() == count, op, ": weight and bias must have ", count, " values, got ",
               shape_text(sizes_of(*given)));
  const Tensor dense = torch::stable::contiguous(*given);
  for (int64_t i = 0; i < count; ++i) {
    double& value = values[static_cast<size_t>(i)];
    switch (dense.scalar_type()) {
      case ScalarType::Float:
        value = data<float>(dense)[i];
        break;
      case ScalarType::BFloat16:
        value = to_float(data<bfloat16>(dense)[i]);
        break;
      case ScalarType::Double:
        value = data<double>(dense)[i];
        break;
      default:
        VOLNET_CHECK(false, op, ": weight and bias must be float32, float64 or bfloat16");
    }
  }
  return values;
}

}  // namespace volnet

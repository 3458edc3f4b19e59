// The weights and biases of norms: few numbers, in the dtype of the input or in float32.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "ops/dtypes.h"
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
  with_floating_type(dense.scalar_type(), op, "weight and bias", [&](auto type) {
    const auto* const first = data<decltype(type)>(dense);
    std::transform(first, first + count, values.begin(),
                   [](auto value) { return static_cast<double>(to_float(value)); });
    return 0;
  });
  return values;
}

}  // namespace volnet

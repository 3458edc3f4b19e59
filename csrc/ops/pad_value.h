// The value outside of a volume as the bytes that kernels copy.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "torch_abi.h"

namespace volnet {

template <class T>
uint64_t repeated_value(double value, const char* op) {
  if constexpr (std::is_integral_v<T>) {  // converting anything else is undefined
    constexpr double limit = static_cast<double>(uint64_t{1} << std::numeric_limits<T>::digits);
    constexpr double least = std::is_signed_v<T> ? -limit : 0.0;
    VOLNET_CHECK(value >= least && value < limit && value == std::trunc(value), op, ": pad_value ", value,
                 " is no value of the volume's dtype");
  }
  T elements[8 / sizeof(T)];
  for (T& element : elements) element = static_cast<T>(value);
  uint64_t eight;
  std::memcpy(&eight, elements, sizeof eight);
  return eight;
}

// pad_value in a dtype, repeated to fill eight bytes. Raises where the dtype has no such value.
inline uint64_t pad_bytes(ScalarType dtype, double value, const char* op) {
  switch (dtype) {
    case ScalarType::Byte:
      return repeated_value<uint8_t>(value, op);
    case ScalarType::Char:
      return repeated_value<int8_t>(value, op);
    case ScalarType::Short:
      return repeated_value<int16_t>(value, op);
    case ScalarType::Int:
      return repeated_value<int32_t>(value, op);
    case ScalarType::Long:
      return repeated_value<int64_t>(value, op);
    case ScalarType::Float:
      return repeated_value<float>(value, op);
    case ScalarType::Double:
      return repeated_value<double>(value, op);
    case ScalarType::BFloat16:
      return to_bfloat16(static_cast<float>(value)).bits * uint64_t{0x0001000100010001};
    default:
      VOLNET_CHECK(false, op, ": the dtype is not supported");
  }
}

}  // namespace volnet

// From a tensor's dtype to the C++ type, and to the kernel for it.
#pragma once

#include <type_traits>

#include "isa/dispatch.h"
#include "torch_abi.h"

namespace volnet {

inline const char* type_name(ScalarType dtype) { return torch::headeronly::toString(dtype); }

// f(T{}) with the T that dtype names; raises for other dtypes.
template <class F>
auto with_floating_type(ScalarType dtype, const char* op, const char* name, const F& f) {
  if (dtype == ScalarType::Float) return f(float{});
  if (dtype == ScalarType::Double) return f(double{});
  VOLNET_CHECK(dtype == ScalarType::BFloat16, op, ": ", name, " must be float32, float64 or bfloat16, got ",
               type_name(dtype));
  return f(bfloat16{});
}

// The kernel for values stored as T.
template <class T, class F32, class BF16, class F64>
auto best_for(const isa::KernelTable<F32>& f32, const isa::KernelTable<BF16>& bf16,
              const isa::KernelTable<F64>& f64) {
  if constexpr (std::is_same_v<T, float>) {
    return f32.best();
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    return bf16.best();
  } else {
    return f64.best();
  }
}

}  // namespace volnet

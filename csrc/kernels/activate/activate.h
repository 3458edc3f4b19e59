// Activations by themselves, over the elements of dense memory in whatever order they lie:
//
//   y[i] = f(x[i])          dx[i] = grad[i] * f'(x[i])
//
// f is relu, leaky_relu (x * parameter below zero), silu, gelu, gelu_tanh, elu ((e^x - 1) * parameter below
// zero) or sigmoid. The gradients of relu, leaky_relu, elu and sigmoid can be told from the result: see
// `from_result`. y may be x, dx may be grad; nothing else aliases.
//
// prelu has slopes that repeat: element begin + j has slopes[j % period]. With the channel innermost the
// slopes of all channels are written one after another, up to a multiple of the vector; a run of voxels of
// one channel has the same slope all over. Backward adds to sums[j % period] what the slope owes: grad[i] *
// x[i] where x[i] is not above zero.
#pragma once

#include <cstdint>

#include "isa/dispatch.h"
#include "kernels/activation_functions/activation.h"

namespace volnet::activate {

enum class Function { relu, leaky_relu, silu, gelu, gelu_tanh, elu, sigmoid };

struct Forward {
  Function function;
  double parameter;
  const void* x;
  void* y;
  bool stream;  // store past the caches; y + begin must be a multiple of 64 bytes
};

struct Backward {
  Function function;
  double parameter;
  bool from_result;  // `value` is y, else x
  const void *grad, *value;
  void* dx;
  bool stream;
};

constexpr int64_t slope_multiple = 16;  // period is one of it

struct Prelu {
  const void *slopes, *x;  // the slopes are of the compute type
  void* y;
  int64_t period;
  bool stream;
};

struct PreluBackward {
  const void *slopes, *grad, *x;
  void *dx, *sums;  // the sums are of the compute type
  int64_t period;
  bool stream;
};

// Elements [begin, end).
template <class Params>
using Kernel = void (*)(const Params&, int64_t begin, int64_t end);

#define VOLNET_DECLARE(DTYPE)                                         \
  void forward_##DTYPE(const Forward&, int64_t begin, int64_t end);   \
  void backward_##DTYPE(const Backward&, int64_t begin, int64_t end); \
  void prelu_##DTYPE(const Prelu&, int64_t begin, int64_t end);       \
  void prelu_backward_##DTYPE(const PreluBackward&, int64_t begin, int64_t end);
namespace scalar {
VOLNET_DECLARE(f32)
VOLNET_DECLARE(bf16)
VOLNET_DECLARE(f64)
}  // namespace scalar
namespace avx2 {
VOLNET_DECLARE(f32)
VOLNET_DECLARE(bf16)
}  // namespace avx2
namespace avx512 {
VOLNET_DECLARE(f32)
VOLNET_DECLARE(bf16)
}  // namespace avx512
#undef VOLNET_DECLARE

extern const isa::KernelTable<Kernel<Forward>> forward_f32, forward_bf16, forward_f64;
extern const isa::KernelTable<Kernel<Backward>> backward_f32, backward_bf16, backward_f64;
extern const isa::KernelTable<Kernel<Prelu>> prelu_f32, prelu_bf16, prelu_f64;
extern const isa::KernelTable<Kernel<PreluBackward>> prelu_backward_f32, prelu_backward_bf16,
    prelu_backward_f64;

}  // namespace volnet::activate

// What a convolution does to its input while it loads it. The input is one volume or two, read as if they
// were concatenated over the channels, and each may be the raw result of a layer whose norm and activation
// are still to come:
//
//   x'[n, i, c] = activation(x[n, i, c] * scale[n, c] + shift[n, c])
//
// Padding is zeros around x', not around x. Values are in the compute type from here on: bfloat16 is not
// rounded between, but on AMX, which multiplies bfloat16.
//
// A kernel that gathers its input into scratch of its own loads it by InputVector of input_body.h. For the
// others, and where an activation is too expensive to be computed once for every tap, apply_inputs writes x'
// first; what it writes has the dtype of x.
#pragma once

#include <array>
#include <cstdint>

#include "isa/dispatch.h"
#include "kernels/conv3d/epilogue.h"

namespace volnet::conv3d {

struct Input {
  const void* x = nullptr;      // [N, D, H, W, channels]
  int64_t channels = 0;         // of all groups
  const void* scale = nullptr;  // [N, channels] in the compute type, or null for ones
  const void* shift = nullptr;  // the same, or null for zeros
  Activation activation = Activation::none;
  const void* slopes = nullptr;  // of prelu: [channels]
};

using Inputs = std::array<Input, 2>;  // the second may have no channels

// x' of whole volumes.
struct AppliedInputs {
  Inputs inputs;
  int64_t batch = 0;
  std::array<int64_t, 3> size{};

  int64_t channels() const { return inputs[0].channels + inputs[1].channels; }
  int64_t pieces() const { return batch * size[0] * size[1]; }  // rows along W
};

// One row of x' into `to`, [N, D, H, W, channels] in the dtype of x.
using ApplyInputs = void (*)(const AppliedInputs& call, int64_t piece, void* to);

#define VOLNET_INPUT_KERNELS(level)                                           \
  namespace level {                                                           \
  void apply_inputs_f32(const AppliedInputs& call, int64_t piece, void* to);  \
  void apply_inputs_bf16(const AppliedInputs& call, int64_t piece, void* to); \
  }
VOLNET_INPUT_KERNELS(scalar)
VOLNET_INPUT_KERNELS(avx2)
VOLNET_INPUT_KERNELS(avx512)
#undef VOLNET_INPUT_KERNELS
namespace scalar {
void apply_inputs_f64(const AppliedInputs& call, int64_t piece, void* to);
}

extern const isa::KernelTable<ApplyInputs> apply_inputs_f32, apply_inputs_bf16, apply_inputs_f64;

}  // namespace volnet::conv3d

// The inputs of a fused convolution, between the arguments of the operator and the Inputs of a kernel.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/conv3d/input.h"
#include "ops/epilogue.h"
#include "ops/tensors.h"

namespace volnet {

// One input as the operator gets it: scale and shift are [N, C] in the compute type.
struct InputArguments {
  Tensor x;
  std::optional<Tensor> scale, shift;
  std::string activation;
};

// The arguments as a kernel reads them, and the memory behind.
template <class S>
class PreparedInputs {
  using A = compute_t<S>;

 public:
  conv3d::Inputs inputs;

  PreparedInputs(const std::vector<InputArguments>& all, double negative_slope, const char* op) {
    for (size_t i = 0; i < all.size(); ++i) {
      const InputArguments& from = all[i];
      conv3d::Input& input = inputs[i];
      input.channels = from.x.size(1);
      const Tensor& x = tensors_.emplace_back(to_layout(from.x, Layout5::channels_last, op));
      input.x = x.const_data_ptr();
      input.scale = values(from.scale, from.x, op);
      input.shift = values(from.shift, from.x, op);
      VOLNET_CHECK(from.activation != "prelu", op, ": an input has no prelu");
      input.activation = activation_of(from.activation, op);
      if (input.activation == Activation::prelu) {
        slopes_.resize(static_cast<size_t>(std::max(input.channels, static_cast<int64_t>(slopes_.size()))),
                       static_cast<A>(negative_slope));
      }
    }
    for (conv3d::Input& input : inputs) {
      if (input.activation == Activation::prelu) input.slopes = slopes_.data();
    }
  }
  PreparedInputs(const PreparedInputs&) = delete;
  PreparedInputs& operator=(const PreparedInputs&) = delete;

 private:
  std::vector<Tensor> tensors_;
  std::vector<A> slopes_;

  const void* values(const std::optional<Tensor>& given, const Tensor& x, const char* op) {
    if (!given) return nullptr;
    VOLNET_CHECK(given->scalar_type() == ScalarTypeOf<A>::value && given->dim() == 2 &&
                     given->size(0) == x.size(0) && given->size(1) == x.size(1),
                 op, ": scale and shift must be [", x.size(0), ", ", x.size(1), "] in the compute type");
    return tensors_.emplace_back(torch::stable::contiguous(*given)).const_data_ptr();
  }
};

}  // namespace volnet

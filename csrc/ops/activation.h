// The names of activations, as operators take them.
#pragma once

#include <string>

#include "kernels/activation_functions/activation.h"
#include "torch_abi.h"

namespace volnet {

inline Activation activation_of(const std::string& name, const char* op) {
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  if (name == "leaky_relu" || name == "prelu") return Activation::prelu;
  if (name == "silu") return Activation::silu;
  if (name == "gelu") return Activation::gelu;
  VOLNET_CHECK(name == "gelu_tanh", op, ": there is no activation '", name, "'");
  return Activation::gelu_tanh;
}

}  // namespace volnet

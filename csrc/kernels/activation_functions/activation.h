// The activations that operators apply while they store. body.h computes them, and their gradients.
#pragma once

namespace volnet {

// prelu: x where x > 0, else x times the channel's slope; leaky_relu is one with equal slopes.
enum class Activation { none, relu, prelu, silu, gelu, gelu_tanh };

}  // namespace volnet

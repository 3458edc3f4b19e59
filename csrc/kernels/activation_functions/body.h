// Activations over Vec, and over VecDouble where there is one. Included inside the namespace of the level
// after Vec; needs <cmath> and <type_traits>.
#include "isa/vec_math.h"

template <Activation activation, class T>
inline T activate(T x, T slope) {
  using E = typename T::element;
  if constexpr (activation == Activation::relu) {
    return T::max(T::zero(), x);  // NaN stays NaN
  } else if constexpr (activation == Activation::prelu) {
    return T::select(T::greater(x, T::zero()), x, x * slope);
  } else if constexpr (activation == Activation::silu) {
    return x / (T::broadcast(1) + exponential(T::zero() - x));
  } else if constexpr (activation == Activation::gelu) {
    const T one = T::broadcast(1), magnitude = T::max(x, T::zero() - x), tail = normal_tail(magnitude);
    return x * T::select(T::greater(x, T::zero()), one - tail, tail);
  } else if constexpr (activation == Activation::gelu_tanh) {
    // (1 + tanh(z)) / 2 = 1 / (1 + e^(-2 z)) with z = sqrt(2 / pi) * (x + 0.044715 x^3)
    const T cubic = T::broadcast(static_cast<E>(0.044715 * -1.5957691216057308)),
            linear = T::broadcast(static_cast<E>(-1.5957691216057308));
    return x / (T::broadcast(1) + exponential(x * T::fma(cubic, x * x, linear)));
  } else {
    return x;
  }
}

// Not inlined: where one vector at a time is activated, this is not what costs.
template <class T>
[[gnu::noinline]] T activate_any(Activation activation, T x, T slope) {
  switch (activation) {
    case Activation::none:
      return x;
    case Activation::relu:
      return activate<Activation::relu>(x, slope);
    case Activation::prelu:
      return activate<Activation::prelu>(x, slope);
    case Activation::silu:
      return activate<Activation::silu>(x, slope);
    case Activation::gelu:
      return activate<Activation::gelu>(x, slope);
    case Activation::gelu_tanh:
      return activate<Activation::gelu_tanh>(x, slope);
  }
  return x;
}

// What z owes to activate<activation>(z, slope), of which the gradient is `grad`.
template <Activation activation, class T>
inline T activation_gradient(T grad, T z, T slope) {
  using E = typename T::element;
  const T one = T::broadcast(1);
  if constexpr (activation == Activation::relu) {
    return T::select(T::greater(z, T::zero()), grad, T::zero());
  } else if constexpr (activation == Activation::prelu) {
    return T::select(T::greater(z, T::zero()), grad, grad * slope);
  } else if constexpr (activation == Activation::silu) {
    const T sigmoid = one / (one + exponential(T::zero() - z));
    return grad * sigmoid * T::fma(z, one - sigmoid, one);
  } else if constexpr (activation == Activation::gelu) {
    const T tail = normal_tail(T::max(z, T::zero() - z));
    const T density =
        T::broadcast(static_cast<E>(0.3989422804014327)) * exponential(T::broadcast(-0.5f) * z * z);
    return grad * T::fma(z, density, T::select(T::greater(z, T::zero()), one - tail, tail));
  } else if constexpr (activation == Activation::gelu_tanh) {
    // With s = (1 + tanh(u)) / 2 and u = sqrt(2 / pi) * (z + 0.044715 z^3): s + 2 z s (1 - s) u'
    const T square = z * z;
    const T cubic = T::broadcast(static_cast<E>(0.044715 * -1.5957691216057308)),
            linear = T::broadcast(static_cast<E>(-1.5957691216057308));
    const T power = exponential(z * T::fma(cubic, square, linear)), s = one / (one + power);
    const T slope_of_u = T::zero() - T::fma(T::broadcast(3) * cubic, square, linear);
    return grad * T::fma(z * s * (power * s), slope_of_u, s);  // 1 - s would cancel
  } else {
    return grad;
  }
}

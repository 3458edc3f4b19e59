// Included inside volnet::activate::VOLNET_ISA, after Vec. activate.h is the specification.
#include "kernels/activation_functions/body.h"

// The normal distribution's share below x, for results that are rounded to bfloat16.
inline Vec share_below_for_bfloat16(Vec x) {
  const Vec tail = normal_tail_for_bfloat16(Vec::max(x, Vec::zero() - x));
  return Vec::select(Vec::greater(x, Vec::zero()), Vec::broadcast(1) - tail, tail);
}

template <Function function, class S, class T>
inline T result(T x, T parameter) {
  if constexpr (function == Function::gelu && std::is_same_v<S, bfloat16>) {
    return x * share_below_for_bfloat16(x);
  } else if constexpr (function == Function::relu) {
    return activate<Activation::relu>(x, parameter);
  } else if constexpr (function == Function::leaky_relu) {
    return activate<Activation::prelu>(x, parameter);
  } else if constexpr (function == Function::silu) {
    return activate<Activation::silu>(x, parameter);
  } else if constexpr (function == Function::gelu) {
    return activate<Activation::gelu>(x, parameter);
  } else if constexpr (function == Function::gelu_tanh) {
    return activate<Activation::gelu_tanh>(x, parameter);
  } else if constexpr (function == Function::elu) {
    return T::select(T::greater(x, T::zero()), x, parameter * exponential_minus_one(x));
  } else {
    return T::broadcast(1) / (T::broadcast(1) + exponential(T::zero() - x));
  }
}

// `value` is the result where that is enough, else what went in; elu takes either.
template <Function function, bool from_result, class S, class T>
inline T gradient(T grad, T value, T parameter) {
  const typename T::Mask above = T::greater(value, T::zero());
  if constexpr (function == Function::gelu && std::is_same_v<S, bfloat16>) {
    // From 87.3 on the density leaves the normal numbers.
    const T exponent = T::min(T::broadcast(87.3f), T::broadcast(0.5f) * value * value);
    const T density =
        T::broadcast(0.398942280f) * power_of_two_for_bfloat16(T::broadcast(-1.44269504f) * exponent);
    return grad * T::fma(value, density, share_below_for_bfloat16(value));
  } else if constexpr (function == Function::relu) {  // of NaN the gradient goes through, as in torch
    return T::select(T::either(above, T::is_nan(value)), grad, T::zero());
  } else if constexpr (function == Function::leaky_relu) {
    return activation_gradient<Activation::prelu>(grad, value, parameter);
  } else if constexpr (function == Function::silu) {
    return activation_gradient<Activation::silu>(grad, value, parameter);
  } else if constexpr (function == Function::gelu) {
    return activation_gradient<Activation::gelu>(grad, value, parameter);
  } else if constexpr (function == Function::gelu_tanh) {
    return activation_gradient<Activation::gelu_tanh>(grad, value, parameter);
  } else if constexpr (function == Function::elu) {
    const T slope = from_result ? value + parameter : parameter * exponential(value);
    return T::select(above, grad, grad * slope);
  } else {
    const T y = from_result ? value : result<Function::sigmoid, S>(value, parameter);
    return grad * y * (T::broadcast(1) - y);
  }
}

// The hardware's prefetcher stops at the end of a page.
template <class S>
inline void prefetch(const S* p) {
  __builtin_prefetch(reinterpret_cast<const char*>(p) + 2048);
}

template <Function function, class T, class S>
void forward_as(const Forward& p, int64_t begin, int64_t end) {
  const T parameter = T::broadcast(static_cast<typename T::element>(p.parameter));
  const S* const x = static_cast<const S*>(p.x);
  S* const y = static_cast<S*>(p.y);
  int64_t i = begin;
  for (; i + T::width <= end; i += T::width) {
    prefetch(x + i);
    const T value = result<function, S>(T::load(x + i), parameter);
    if (p.stream) {
      value.stream(y + i);
    } else {
      value.store(y + i);
    }
  }
  if (i < end) result<function, S>(T::load(x + i, end - i), parameter).store(y + i, end - i);
  if (p.stream) VecBytes::stream_end();
}

template <Function function, bool from_result, class T, class S>
void backward_as(const Backward& p, int64_t begin, int64_t end) {
  const T parameter = T::broadcast(static_cast<typename T::element>(p.parameter));
  const S *const grad = static_cast<const S*>(p.grad), *const value = static_cast<const S*>(p.value);
  S* const dx = static_cast<S*>(p.dx);
  int64_t i = begin;
  for (; i + T::width <= end; i += T::width) {
    prefetch(grad + i);
    prefetch(value + i);
    const T d = gradient<function, from_result, S>(T::load(grad + i), T::load(value + i), parameter);
    if (p.stream) {
      d.stream(dx + i);
    } else {
      d.store(dx + i);
    }
  }
  if (i < end) {
    const int64_t n = end - i;
    gradient<function, from_result, S>(T::load(grad + i, n), T::load(value + i, n), parameter)
        .store(dx + i, n);
  }
  if (p.stream) VecBytes::stream_end();
}

template <class T, class S>
void forward(const Forward& p, int64_t begin, int64_t end) {
  switch (p.function) {
    case Function::relu:
      return forward_as<Function::relu, T, S>(p, begin, end);
    case Function::leaky_relu:
      return forward_as<Function::leaky_relu, T, S>(p, begin, end);
    case Function::silu:
      return forward_as<Function::silu, T, S>(p, begin, end);
    case Function::gelu:
      return forward_as<Function::gelu, T, S>(p, begin, end);
    case Function::gelu_tanh:
      return forward_as<Function::gelu_tanh, T, S>(p, begin, end);
    case Function::elu:
      return forward_as<Function::elu, T, S>(p, begin, end);
    case Function::sigmoid:
      return forward_as<Function::sigmoid, T, S>(p, begin, end);
  }
}

template <class T, class S>
void backward(const Backward& p, int64_t begin, int64_t end) {
  switch (p.function) {
    case Function::relu:
      return backward_as<Function::relu, true, T, S>(p, begin, end);
    case Function::leaky_relu:
      return backward_as<Function::leaky_relu, true, T, S>(p, begin, end);
    case Function::silu:
      return backward_as<Function::silu, false, T, S>(p, begin, end);
    case Function::gelu:
      return backward_as<Function::gelu, false, T, S>(p, begin, end);
    case Function::gelu_tanh:
      return backward_as<Function::gelu_tanh, false, T, S>(p, begin, end);
    case Function::elu:
      return p.from_result ? backward_as<Function::elu, true, T, S>(p, begin, end)
                           : backward_as<Function::elu, false, T, S>(p, begin, end);
    case Function::sigmoid:
      return backward_as<Function::sigmoid, true, T, S>(p, begin, end);
  }
}

template <class T, class S>
void prelu(const Prelu& p, int64_t begin, int64_t end) {
  using E = typename T::element;
  const S* const x = static_cast<const S*>(p.x);
  const E* const slopes = static_cast<const E*>(p.slopes);
  S* const y = static_cast<S*>(p.y);
  int64_t i = begin, j = 0;
  for (; i + T::width <= end; i += T::width) {
    prefetch(x + i);
    const T value = activate<Activation::prelu>(T::load(x + i), T::load(slopes + j));
    if (p.stream) {
      value.stream(y + i);
    } else {
      value.store(y + i);
    }
    j = j + T::width == p.period ? 0 : j + T::width;
  }
  if (i < end) {
    activate<Activation::prelu>(T::load(x + i, end - i), T::load(slopes + j)).store(y + i, end - i);
  }
  if (p.stream) VecBytes::stream_end();
}

template <class T, class S>
void prelu_backward(const PreluBackward& p, int64_t begin, int64_t end) {
  using E = typename T::element;
  const S *const grad = static_cast<const S*>(p.grad), *const x = static_cast<const S*>(p.x);
  const E* const slopes = static_cast<const E*>(p.slopes);
  S* const dx = static_cast<S*>(p.dx);
  E* const sums = static_cast<E*>(p.sums);
  int64_t i = begin, j = 0;
  for (; i + T::width <= end; i += T::width) {
    prefetch(grad + i);
    prefetch(x + i);
    const T g = T::load(grad + i), value = T::load(x + i);
    const T d = activation_gradient<Activation::prelu>(g, value, T::load(slopes + j));
    if (p.stream) {
      d.stream(dx + i);
    } else {
      d.store(dx + i);
    }
    const T owed = T::select(T::greater(value, T::zero()), T::zero(), g * value);
    (T::load(sums + j) + owed).store(sums + j);
    j = j + T::width == p.period ? 0 : j + T::width;
  }
  if (i < end) {
    const int64_t n = end - i;
    const T g = T::load(grad + i, n), value = T::load(x + i, n);
    activation_gradient<Activation::prelu>(g, value, T::load(slopes + j)).store(dx + i, n);
    const T owed = T::select(T::greater(value, T::zero()), T::zero(), g * value);
    (T::load(sums + j) + owed).store(sums + j);
  }
  if (p.stream) VecBytes::stream_end();
}

#define VOLNET_DEFINE(DTYPE, T, S)                                                                        \
  void forward_##DTYPE(const Forward& p, int64_t begin, int64_t end) { forward<T, S>(p, begin, end); }    \
  void backward_##DTYPE(const Backward& p, int64_t begin, int64_t end) { backward<T, S>(p, begin, end); } \
  void prelu_##DTYPE(const Prelu& p, int64_t begin, int64_t end) { prelu<T, S>(p, begin, end); }          \
  void prelu_backward_##DTYPE(const PreluBackward& p, int64_t begin, int64_t end) {                       \
    prelu_backward<T, S>(p, begin, end);                                                                  \
  }
VOLNET_DEFINE(f32, Vec, float)
VOLNET_DEFINE(bf16, Vec, bfloat16)

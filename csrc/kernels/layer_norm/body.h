// The kernels of one instruction set; layer_norm.h is their specification. Included inside the namespace of
// the level after Vec.
#include "kernels/activation_functions/body.h"
#include "kernels/norm/run.h"

template <class T, class S>
inline void store_up_to(T v, S* p, int64_t n) {
  if (n == T::width) {
    v.store(p);
  } else {
    v.store(p, n);
  }
}

// xhat = (x - center) * invstd - rest: x - center is exact where x is close to the mean.
template <class T>
struct Statistics {
  T center, invstd, rest;

  T operator()(T x) const { return T::fma(x - center, invstd, T::zero() - rest); }
};

template <class T, class S>
inline Statistics<T> statistics(const S* x, int64_t columns, double epsilon) {
  using E = typename T::element;
  const Run<E> run = run_of<T>(x, columns);
  const double share = 1 / static_cast<double>(columns), mean = run.first * share;
  const double variance = std::max((run.squares - run.first * mean) * share, 0.0);
  const double invstd = 1 / std::sqrt(variance + epsilon);
  return {T::broadcast(run.center), T::broadcast(static_cast<E>(invstd)),
          T::broadcast(static_cast<E>(mean * invstd))};
}

template <class T, class S>
inline T normalized(const Params& p, T xhat, int64_t k, const S* residual, int64_t n) {
  using E = typename T::element;
  const T z = T::fma(xhat, load_up_to<T>(static_cast<const E*>(p.weight) + k, n),
                     load_up_to<T>(static_cast<const E*>(p.bias) + k, n));
  return residual == nullptr ? z : z + load_up_to<T>(residual + k, n);
}

template <class S>
inline const S* row_of(const void* values, int64_t row, int64_t columns) {
  return values == nullptr ? nullptr : static_cast<const S*>(values) + row * columns;
}

template <Activation activation, class T, class S>
void forward_as(const Params& p, int64_t row_begin, int64_t row_end) {
  const T slope = T::broadcast(static_cast<typename T::element>(p.negative_slope));
  for (int64_t row = row_begin; row < row_end; ++row) {
    const S* x = row_of<S>(p.x, row, p.columns);
    const S* residual = row_of<S>(p.residual, row, p.columns);
    S* y = static_cast<S*>(p.y) + row * p.columns;
    const Statistics<T> xhat = statistics<T>(x, p.columns, p.epsilon);
    for (int64_t k = 0; k < p.columns; k += T::width) {
      const int64_t n = std::min(T::width, p.columns - k);
      const T z = normalized<T>(p, xhat(load_up_to<T>(x + k, n)), k, residual, n);
      store_up_to(activate<activation>(z, slope), y + k, n);
    }
  }
}

template <Activation activation, class T, class S>
void backward_as(const Params& p, int64_t row_begin, int64_t row_end, void* sums) {
  using E = typename T::element;
  const T slope = T::broadcast(static_cast<E>(p.negative_slope));
  const E share = 1 / static_cast<E>(p.columns);
  const E* const weight = static_cast<const E*>(p.weight);
  E* const products = static_cast<E*>(sums);
  E* const gradients = products + p.columns;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const S* x = row_of<S>(p.x, row, p.columns);
    const S* grad = row_of<S>(p.grad, row, p.columns);
    const S* residual = row_of<S>(p.residual, row, p.columns);
    S* dx = static_cast<S*>(p.y) + row * p.columns;
    S* dz_copy = p.dz_copy == nullptr ? nullptr : static_cast<S*>(p.dz_copy) + row * p.columns;
    const Statistics<T> xhat = statistics<T>(x, p.columns, p.epsilon);
    T sum = T::zero(), product = T::zero();
    for (int64_t k = 0; k < p.columns; k += T::width) {
      const int64_t n = std::min(T::width, p.columns - k);
      const T at = xhat(load_up_to<T>(x + k, n));
      T dz = load_up_to<T>(grad + k, n);
      if constexpr (activation != Activation::none) {
        dz = activation_gradient<activation>(dz, normalized<T>(p, at, k, residual, n), slope);
      }
      const T g = dz * load_up_to<T>(weight + k, n);
      sum = sum + g;
      product = T::fma(g, at, product);
      store_up_to(T::fma(dz, at, load_up_to<T>(products + k, n)), products + k, n);
      store_up_to(dz + load_up_to<T>(gradients + k, n), gradients + k, n);
      if (dz_copy != nullptr) store_up_to(dz, dz_copy + k, n);
    }
    const T mean = T::broadcast(sum.sum() * share), slope_of_x = T::broadcast(product.sum() * share);
    for (int64_t k = 0; k < p.columns; k += T::width) {
      const int64_t n = std::min(T::width, p.columns - k);
      const T at = xhat(load_up_to<T>(x + k, n));
      T dz = load_up_to<T>(grad + k, n);
      if constexpr (activation != Activation::none) {
        dz = activation_gradient<activation>(dz, normalized<T>(p, at, k, residual, n), slope);
      }
      const T g = dz * load_up_to<T>(weight + k, n);
      store_up_to((g - mean - at * slope_of_x) * xhat.invstd, dx + k, n);
    }
  }
}

template <class T, class S>
void forward(const Params& p, int64_t row_begin, int64_t row_end) {
  switch (p.activation) {
    case Activation::none:
      return forward_as<Activation::none, T, S>(p, row_begin, row_end);
    case Activation::relu:
      return forward_as<Activation::relu, T, S>(p, row_begin, row_end);
    case Activation::prelu:
      return forward_as<Activation::prelu, T, S>(p, row_begin, row_end);
    case Activation::silu:
      return forward_as<Activation::silu, T, S>(p, row_begin, row_end);
    case Activation::gelu:
      return forward_as<Activation::gelu, T, S>(p, row_begin, row_end);
    case Activation::gelu_tanh:
      return forward_as<Activation::gelu_tanh, T, S>(p, row_begin, row_end);
  }
}

template <class T, class S>
void backward(const Params& p, int64_t row_begin, int64_t row_end, void* sums) {
  switch (p.activation) {
    case Activation::none:
      return backward_as<Activation::none, T, S>(p, row_begin, row_end, sums);
    case Activation::relu:
      return backward_as<Activation::relu, T, S>(p, row_begin, row_end, sums);
    case Activation::prelu:
      return backward_as<Activation::prelu, T, S>(p, row_begin, row_end, sums);
    case Activation::silu:
      return backward_as<Activation::silu, T, S>(p, row_begin, row_end, sums);
    case Activation::gelu:
      return backward_as<Activation::gelu, T, S>(p, row_begin, row_end, sums);
    case Activation::gelu_tanh:
      return backward_as<Activation::gelu_tanh, T, S>(p, row_begin, row_end, sums);
  }
}

#define VOLNET_DEFINE(DTYPE, T, S)                                                                           \
  void forward_##DTYPE(const Params& p, int64_t begin, int64_t end, void*) { forward<T, S>(p, begin, end); } \
  void backward_##DTYPE(const Params& p, int64_t begin, int64_t end, void* sums) {                           \
    backward<T, S>(p, begin, end, sums);                                                                     \
  }
VOLNET_DEFINE(f32, Vec, float)
VOLNET_DEFINE(bf16, Vec, bfloat16)

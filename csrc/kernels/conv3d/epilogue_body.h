// The epilogue of one instruction set; epilogue.h is its specification. Included inside the namespace of the
// level after Vec.
#include "kernels/activation_functions/body.h"

template <Activation activation, class T, class S>
void finish_as(const Epilogue& epilogue, const void* bias, const Sums& sums) {
  using E = typename T::element;
  const E* values = static_cast<const E*>(sums.values);
  S* y = static_cast<S*>(sums.y) + sums.offset;
  const S* residual =
      static_cast<const S*>(epilogue.residual) + (epilogue.residual == nullptr ? 0 : sums.offset);
  for (int64_t i = 0; i < sums.filters; i += T::width) {
    const int64_t lanes = std::min(T::width, sums.filters - i);
    const T add = bias == nullptr ? T::zero() : T::load(static_cast<const E*>(bias) + sums.filter + i, lanes);
    T slope = T::zero();
    if constexpr (activation == Activation::prelu) {
      slope = T::load(static_cast<const E*>(epilogue.slopes) + sums.filter + i, lanes);
    }
    for (int64_t v = 0; v < sums.voxels && lanes == T::width; ++v) {
      T x = T::load(values + v * sums.step + i) + add;
      if (epilogue.residual != nullptr) x = x + T::load(residual + v * sums.y_step + i);
      x = activate<activation>(x, slope);
      if (sums.stream) {
        x.stream(y + v * sums.y_step + i);
      } else {
        x.store(y + v * sums.y_step + i);
      }
    }
    for (int64_t v = 0; v < sums.voxels && lanes < T::width; ++v) {
      T x = T::load(values + v * sums.step + i, lanes) + add;
      if (epilogue.residual != nullptr) x = x + T::load(residual + v * sums.y_step + i, lanes);
      activate<activation>(x, slope).store(y + v * sums.y_step + i, lanes);
    }
  }
}

// Merges the mean and the squared deviations of a block just stored into those of its slot (Chan, Golub,
// LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979).
template <class T, class S>
void gather_statistics(const Epilogue& epilogue, const Sums& sums) {
  using E = typename T::element;
  const S* y = static_cast<const S*>(sums.y) + sums.offset;
  E* slot = static_cast<E*>(epilogue.statistics) + sums.slot * 4 * sums.total_filters + sums.filter;
  const E added = static_cast<E>(sums.voxels);
  for (int64_t i = 0; i < sums.filters; i += T::width) {
    const int64_t lanes = std::min(T::width, sums.filters - i);
    E* const counts = slot + i;
    E* const pivots = counts + sums.total_filters;
    E* const means = pivots + sums.total_filters;
    E* const squares = means + sums.total_filters;
    const E count = *counts;
    const T pivot = count == 0 ? T::load(y + i, lanes) : T::load(pivots, lanes);
    T sum = T::zero(), square = T::zero();
    for (int64_t v = 0; v < sums.voxels; ++v) sum = sum + (T::load(y + v * sums.y_step + i, lanes) - pivot);
    const T mean = sum * T::broadcast(1 / added);
    for (int64_t v = 0; v < sums.voxels; ++v) {
      const T deviation = T::load(y + v * sums.y_step + i, lanes) - pivot - mean;
      square = T::fma(deviation, deviation, square);
    }
    const T before = T::load(means, lanes), difference = mean - before;
    const T share = T::broadcast(added / (count + added));
    square = square + T::load(squares, lanes);
    T::broadcast(count + added).store(counts, lanes);
    pivot.store(pivots, lanes);
    T::fma(difference, share, before).store(means, lanes);
    T::fma(difference * difference, share * T::broadcast(count), square).store(squares, lanes);
  }
}

template <class T, class S>
void finish(const Epilogue& epilogue, const void* bias, const Sums& sums) {
  switch (epilogue.activation) {
    case Activation::none:
      finish_as<Activation::none, T, S>(epilogue, bias, sums);
      break;
    case Activation::relu:
      finish_as<Activation::relu, T, S>(epilogue, bias, sums);
      break;
    case Activation::prelu:
      finish_as<Activation::prelu, T, S>(epilogue, bias, sums);
      break;
    case Activation::silu:
      finish_as<Activation::silu, T, S>(epilogue, bias, sums);
      break;
    case Activation::gelu:
      finish_as<Activation::gelu, T, S>(epilogue, bias, sums);
      break;
    case Activation::gelu_tanh:
      finish_as<Activation::gelu_tanh, T, S>(epilogue, bias, sums);
      break;
  }
  if (epilogue.gathers()) gather_statistics<T, S>(epilogue, sums);
}

// The moments of a run of values that stays in a core's cache, of one channel or one row. Included inside the
// namespace of the level after Vec.

template <class T, class S>
inline T load_up_to(const S* p, int64_t n) {
  return n == T::width ? T::load(p) : T::load(p, n);
}

// A center close to the mean, the sum of the deviations from it, which is what the center lacks, and the sum
// of their squares.
template <class E>
struct Run {
  E center;
  double first, squares;
};

template <class T, class S>
inline Run<typename T::element> run_of(const S* x, int64_t count) {
  using E = typename T::element;
  constexpr int parts = 4;  // sums that are made at a time
  constexpr int64_t step = parts * T::width;
  T sum[parts], square[parts];
#pragma GCC unroll 16
  for (int i = 0; i < parts; ++i) sum[i] = square[i] = T::zero();
  int64_t k = 0;
  for (; k + step <= count; k += step) {
#pragma GCC unroll 16
    for (int i = 0; i < parts; ++i) {
      __builtin_prefetch(x + count + k + i * T::width);
      sum[i] = sum[i] + T::load(x + k + i * T::width);
    }
  }
  for (; k < count; k += T::width) {
    sum[0] = sum[0] + load_up_to<T>(x + k, std::min(T::width, count - k));
  }
  const E center = ((sum[0] + sum[1]) + (sum[2] + sum[3])).sum() * (1 / static_cast<E>(count));
  const T at = T::broadcast(center);
#pragma GCC unroll 16
  for (int i = 0; i < parts; ++i) sum[i] = T::zero();
  for (k = 0; k + step <= count; k += step) {
#pragma GCC unroll 16
    for (int i = 0; i < parts; ++i) {
      const T deviation = T::load(x + k + i * T::width) - at;
      sum[i] = sum[i] + deviation;
      square[i] = T::fma(deviation, deviation, square[i]);
    }
  }
  for (; k < count; k += T::width) {
    const int64_t n = std::min(T::width, count - k);
    T deviation = load_up_to<T>(x + k, n) - at;
    if (n < T::width) {
      // Lanes past the run hold zeros of x.
      E values[T::width];
      deviation.store(values);
      deviation = T::load(values, n);
    }
    sum[1] = sum[1] + deviation;
    square[1] = T::fma(deviation, deviation, square[1]);
  }
  return {center, static_cast<double>(((sum[0] + sum[1]) + (sum[2] + sum[3])).sum()),
          static_cast<double>(((square[0] + square[1]) + (square[2] + square[3])).sum())};
}

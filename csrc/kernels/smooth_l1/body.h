// Included inside volnet::smooth_l1::VOLNET_ISA, after Vec. smooth_l1.h is the specification.

template <class T, class S>
inline T difference(const void* x, const void* target, int64_t i, int64_t n) {
  const S *const a = static_cast<const S*>(x) + i, *const b = static_cast<const S*>(target) + i;
  return n >= T::width ? T::load(a) - T::load(b) : T::load(a, n) - T::load(b, n);
}

template <class T, class S>
void forward(const Forward& p, int64_t begin, int64_t end) {
  using E = typename T::element;
  constexpr int64_t vectors = 4, flush = 1024 * T::width;  // numbers between two additions to the double
  const T beta = T::broadcast(static_cast<E>(p.beta)), half = T::broadcast(E{0.5});
  const T scale = T::broadcast(p.beta > 0 ? static_cast<E>(0.5 / p.beta) : E{0});
  double total = 0;
  for (int64_t from = begin; from < end; from += flush) {
    const int64_t to = std::min(from + flush, end);
    T sums[vectors];
#pragma GCC unroll 16
    for (int64_t lane = 0; lane < vectors; ++lane) sums[lane] = T::zero();
    for (int64_t i = from; i < to; i += vectors * T::width) {
#pragma GCC unroll 16
      for (int64_t lane = 0; lane < vectors; ++lane) {
        const int64_t at = i + lane * T::width;
        if (at >= to) break;
        const T d = difference<T, S>(p.x, p.target, at, to - at);
        const T size = T::max(d, T::zero() - d);
        const T far = size - half * beta;
        // Numbers beyond the end are equal: that is inside beta, or a size of 0.
        sums[lane] = sums[lane] + T::select(T::greater(beta, size), scale * d * d, far);
      }
    }
    total += static_cast<double>(((sums[0] + sums[1]) + (sums[2] + sums[3])).sum());
  }
  *p.sum = total;
}

template <class T, class S>
void backward(const Backward& p, int64_t begin, int64_t end) {
  using E = typename T::element;
  const T beta = T::broadcast(static_cast<E>(p.beta));
  const T scale = T::broadcast(p.beta > 0 ? static_cast<E>(p.grad / p.beta) : E{0});
  const T up = T::broadcast(static_cast<E>(p.grad)), down = T::zero() - up;
  for (int64_t i = begin; i < end; i += T::width) {
    const T d = difference<T, S>(p.x, p.target, i, end - i);
    const T size = T::max(d, T::zero() - d);
    const T sign = T::select(T::greater(d, T::zero()), up, T::select(T::greater(T::zero(), d), down, d));
    const T slope = T::select(T::greater(beta, size), scale * d, sign);
    S* const to = static_cast<S*>(p.dx) + i;
    if (end - i >= T::width) {
      slope.store(to);
    } else {
      slope.store(to, end - i);
    }
  }
}

#define VOLNET_DEFINE(DTYPE, T, S)                                                                     \
  void forward_##DTYPE(const Forward& p, int64_t begin, int64_t end) { forward<T, S>(p, begin, end); } \
  void backward_##DTYPE(const Backward& p, int64_t begin, int64_t end) { backward<T, S>(p, begin, end); }
VOLNET_DEFINE(f32, Vec, float)
VOLNET_DEFINE(bf16, Vec, bfloat16)

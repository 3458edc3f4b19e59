// Functions of real numbers over Vec, and over VecDouble where there is one. Include after Vec; needs <cmath>
// and <type_traits>. The coefficients are minimax fits of ours; the errors hold for float.

// e^x within 1.5 ulp; below -87.3 the least normal number, above 88.3 about 2e38. NaN stays NaN.
template <class T>
inline T exponential(T x) {
  if constexpr (std::is_same_v<typename T::element, double>) {
    return {std::exp(x.v)};
  } else {
    // The bounds first: min and max return their second argument where one is NaN.
    x = T::min(T::broadcast(88.3f), T::max(T::broadcast(-87.3f), x));
    // x = n ln 2 + r; adding and taking away 1.5 * 2^23 leaves the nearest integer, and n times the upper
    // part of ln 2 is exact.
    const T shift = T::broadcast(12582912.0f);
    const T n = T::fma(x, T::broadcast(1.44269504f), shift) - shift;
    T r = T::fma(n, T::broadcast(-0.693145752f), x);
    r = T::fma(n, T::broadcast(-1.42860677e-6f), r);
    T p = T::broadcast(0.00138145988f);
    p = T::fma(p, r, T::broadcast(0.00836871658f));
    p = T::fma(p, r, T::broadcast(0.0416683890f));
    p = T::fma(p, r, T::broadcast(0.166665211f));
    p = T::fma(p, r, T::broadcast(0.499999940f));
    return T::fma(p * r, r, r + T::broadcast(1.0f)) * T::power_of_two(n);
  }
}

// The normal distribution's tail, erfc(a / sqrt(2)) / 2 for a >= 0, within 16 ulp up to a = 5.
template <class T>
inline T normal_tail(T a) {
  if constexpr (std::is_same_v<typename T::element, double>) {
    return {std::erfc(a.v / std::sqrt(2.0)) / 2};
  } else {
    // e^(-a^2 / 2) times a polynomial in 1 / (1 + 0.3 a), in which the rest is smooth down to 0. Beyond 12.5
    // the product would leave the normal numbers, which costs a hundred times the time.
    a = T::min(T::broadcast(12.5f), a);
    const T one = T::broadcast(1.0f);
    const T u = one / T::fma(T::broadcast(0.3f), a, one);
    T p = T::broadcast(0.0383115336f);
    p = T::fma(p, u, T::broadcast(-0.168841213f));
    p = T::fma(p, u, T::broadcast(0.227987960f));
    p = T::fma(p, u, T::broadcast(-0.0757365301f));
    p = T::fma(p, u, T::broadcast(0.142002746f));
    p = T::fma(p, u, T::broadcast(0.0949109346f));
    p = T::fma(p, u, T::broadcast(0.121862017f));
    p = T::fma(p, u, T::broadcast(0.119495891f));
    p = T::fma(p, u, T::broadcast(6.68612802e-6f));
    return p * exponential(T::broadcast(-0.5f) * a * a);
  }
}

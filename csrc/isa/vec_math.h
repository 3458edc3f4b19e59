// Functions of real numbers over Vec, and over VecDouble where there is one. Include after Vec; needs <cmath>
// and <type_traits>. The coefficients are minimax fits of ours; the errors hold for float.

// x = n ln 2 + r, and what a polynomial makes of r: e^r - 1 - r. x must be within [-87.3, 88.3].
template <class T>
struct Reduced {
  T n, r, rest;

  explicit inline Reduced(T x) {
    // Adding and taking away 1.5 * 2^23 leaves the nearest integer, and n times the upper part of ln 2 is
    // exact.
    const T shift = T::broadcast(12582912.0f);
    n = T::fma(x, T::broadcast(1.44269504f), shift) - shift;
    r = T::fma(n, T::broadcast(-0.693145752f), x);
    r = T::fma(n, T::broadcast(-1.42860677e-6f), r);
    T p = T::broadcast(0.00138145988f);
    p = T::fma(p, r, T::broadcast(0.00836871658f));
    p = T::fma(p, r, T::broadcast(0.0416683890f));
    p = T::fma(p, r, T::broadcast(0.166665211f));
    p = T::fma(p, r, T::broadcast(0.499999940f));
    rest = p * r;
  }
};

// The bounds first: min and max return their second argument where one is NaN.
template <class T>
inline T within_exponents(T x) {
  return T::min(T::broadcast(88.3f), T::max(T::broadcast(-87.3f), x));
}

// e^x within 1.5 ulp; below -87.3 the least normal number, above 88.3 about 2e38. NaN stays NaN.
template <class T>
inline T exponential(T x) {
  if constexpr (std::is_same_v<typename T::element, double>) {
    return {std::exp(x.v)};
  } else {
    const Reduced<T> at(within_exponents(x));
    return T::scale(T::fma(at.rest, at.r, at.r + T::broadcast(1.0f)), at.n);
  }
}

// e^x - 1, of small x too within a few ulp; the bounds are those of exponential().
template <class T>
inline T exponential_minus_one(T x) {
  if constexpr (std::is_same_v<typename T::element, double>) {
    return {std::expm1(x.v)};
  } else {
    const Reduced<T> at(within_exponents(x));
    const T power = T::power_of_two(at.n);
    return T::fma(power, T::fma(at.rest, at.r, at.r), power - T::broadcast(1.0f));
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

// What follows is for results that are rounded to bfloat16: relative errors below 2^-12, which add less than
// a tenth to the half unit in the last place of the rounding.

// 2^x for -126 <= x <= 127, within 2^-13.7.
inline Vec power_of_two_for_bfloat16(Vec x) {
  const Vec shift = Vec::broadcast(12582912.0f);  // see Reduced
  const Vec n = (x + shift) - shift, r = x - n;
  Vec p = Vec::broadcast(0.0551716201f);
  p = Vec::fma(p, r, Vec::broadcast(0.242611118f));
  p = Vec::fma(p, r, Vec::broadcast(0.693260989f));
  p = Vec::fma(p, r, Vec::broadcast(0.999928072f));
  return Vec::scale(p, n);
}

// normal_tail(a) for a >= 0, within 2^-12.5 up to a = 12.5: a polynomial for its logarithm.
inline Vec normal_tail_for_bfloat16(Vec a) {
  a = Vec::min(Vec::broadcast(12.5f), a);
  Vec p = Vec::broadcast(3.25406139e-08f);
  p = Vec::fma(p, a, Vec::broadcast(-1.98699683e-06f));
  p = Vec::fma(p, a, Vec::broadcast(5.24622246e-05f));
  p = Vec::fma(p, a, Vec::broadcast(-0.000792291917f));
  p = Vec::fma(p, a, Vec::broadcast(0.00768282109f));
  p = Vec::fma(p, a, Vec::broadcast(-0.0515782975f));
  p = Vec::fma(p, a, Vec::broadcast(-0.461670574f));
  p = Vec::fma(p, a, Vec::broadcast(-1.14963944f));
  p = Vec::fma(p, a, Vec::broadcast(-1.00013062f));
  return power_of_two_for_bfloat16(p);
}

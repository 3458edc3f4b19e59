// The kernels of one instruction set; norm.h is their specification. Included inside the namespace of the
// level after Vec.
#include "kernels/activation_functions/body.h"
#include "kernels/norm/run.h"

constexpr int most_vectors = 4;  // of a row that are summed at a time

template <class T, class S>
inline void store_up_to(T v, S* p, int64_t n, bool stream) {
  if (stream) {
    v.stream(p);
  } else if (n == T::width) {
    v.store(p);
  } else {
    v.store(p, n);
  }
}

// Whether every whole vector of a row starts at a multiple of its size.
template <class T, class S>
inline bool can_stream(const Piece& p, const void* y) {
  constexpr int64_t values = T::width, bytes = values * int64_t{sizeof(S)};
  return p.stream && p.period % values == 0 && p.elements % values == 0 &&
         reinterpret_cast<uintptr_t>(y) % static_cast<uintptr_t>(bytes) == 0;
}

// How many rows are summed in the compute type before they are merged in float64.
inline int64_t chunk_rows(int64_t period) { return std::max<int64_t>(4096 / period, 16); }

// A coefficient of each channel as one of each column: itself, or in scratch, which moves on.
template <class E>
inline const E* of_columns(const void* of_channels, const Piece& p, E*& scratch) {
  const E* from = static_cast<const E*>(of_channels);
  if (p.period == p.channels) return from;
  E* const columns = scratch;
  scratch += p.period;
  if (p.channels == 1) {
    std::fill_n(columns, p.period, *from);
    return columns;
  }
  for (int64_t j = 0; j < p.period; j += p.channels) std::copy_n(from, p.channels, columns + j);
  return columns;
}

// The values that are done in a loop without a break: of one channel all columns are the same.
inline int64_t row_of(const Piece& p) { return p.channels == 1 ? p.elements : p.period; }

// A cache line of what is read next: the hardware's prefetch stops at the end of a page.
inline void prefetch(const void* p) { __builtin_prefetch(p); }
constexpr int64_t ahead = 4096;  // bytes

// Moments of `rows` rows of up to `vectors` vectors, the last of `last` values, merged into those of `before`
// rows.
template <int vectors, class T, class S>
inline void merge_moments(const S* x, int64_t rows, int64_t period, int64_t last, int64_t before,
                          double* mean, double* squares) {
  using E = typename T::element;
  T sum[vectors], square[vectors], center[vectors];
#pragma GCC unroll 16
  for (int v = 0; v < vectors; ++v) sum[v] = square[v] = T::zero();
  for (int64_t row = 0; row < rows; ++row) {
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) {
      const S* at = x + row * period + v * T::width;
      prefetch(at + rows * period);
      sum[v] = sum[v] + load_up_to<T>(at, v + 1 < vectors ? T::width : last);
    }
  }
  const T share = T::broadcast(E{1} / static_cast<E>(rows));
#pragma GCC unroll 16
  for (int v = 0; v < vectors; ++v) {
    center[v] = sum[v] * share;
    sum[v] = T::zero();
  }
  for (int64_t row = 0; row < rows; ++row) {
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) {
      const T deviation =
          load_up_to<T>(x + row * period + v * T::width, v + 1 < vectors ? T::width : last) - center[v];
      sum[v] = sum[v] + deviation;
      square[v] = T::fma(deviation, deviation, square[v]);
    }
  }
  E centers[vectors * T::width], sums[vectors * T::width], deviations[vectors * T::width];
#pragma GCC unroll 16
  for (int v = 0; v < vectors; ++v) {
    center[v].store(centers + v * T::width);
    sum[v].store(sums + v * T::width);
    square[v].store(deviations + v * T::width);
  }
  // The sums of the deviations are what the centers lack.
  const double n = static_cast<double>(rows), part = n / static_cast<double>(before + rows);
  for (int64_t j = 0; j < (vectors - 1) * T::width + last; ++j) {
    const double first = static_cast<double>(sums[j]) / n;
    const double difference = static_cast<double>(centers[j]) + first - mean[j];
    mean[j] += difference * part;
    squares[j] += static_cast<double>(deviations[j]) - first * static_cast<double>(sums[j]) +
                  difference * difference * part * static_cast<double>(before);
  }
}

// The last row, where it is shorter: one value more for its columns.
template <class S>
inline void merge_short_row(const S* x, int64_t values, int64_t before, double* mean, double* squares) {
  const double part = 1 / static_cast<double>(before + 1);
  for (int64_t j = 0; j < values; ++j) {
    const double difference = static_cast<double>(to_float(x[j])) - mean[j];
    mean[j] += difference * part;
    squares[j] += difference * difference * part * static_cast<double>(before);
  }
}

// results of the channels from those of the columns, of which the first `longer` have rows + 1 values.
inline void join_moments(const Piece& p, const double* mean, const double* squares, double* results) {
  const int64_t rows = p.elements / p.period, longer = p.elements % p.period;
  const double count = static_cast<double>(p.elements / p.channels);
  double* const means = results;
  double* const sums = results + p.channels;
  std::fill_n(results, 2 * p.channels, 0.0);
  for (int64_t first = 0; first < p.period; first += p.channels) {
    const double share = static_cast<double>(rows + (first < longer)) / count;
    for (int64_t c = 0; c < p.channels; ++c) means[c] += mean[first + c] * share;
  }
  for (int64_t first = 0; first < p.period; first += p.channels) {
    const double values = static_cast<double>(rows + (first < longer));
    for (int64_t c = 0; c < p.channels; ++c) {
      const double difference = mean[first + c] - means[c];
      sums[c] += squares[first + c] + difference * difference * values;
    }
  }
}

// One channel: its runs need no columns.
template <class T, class S>
void moments_of_one(const S* x, int64_t elements, double* results) {
  constexpr int64_t longest = 4096;
  double mean = 0, squares = 0;
  for (int64_t before = 0; before < elements; before += longest) {
    const int64_t count = std::min(longest, elements - before);
    const Run<typename T::element> run = run_of<T>(x + before, count);
    const double n = static_cast<double>(count), rest = run.first / n;
    const double part = n / static_cast<double>(before + count);
    const double difference = static_cast<double>(run.center) + rest - mean;
    mean += difference * part;
    squares += run.squares - run.first * rest + difference * difference * part * static_cast<double>(before);
  }
  results[0] = mean;
  results[1] = squares;
}

template <class T, class S>
void moments(const Piece& p, double* results, void* scratch) {
  const S* const x = static_cast<const S*>(p.x);
  if (p.channels == 1) return moments_of_one<T>(x, p.elements, results);
  double* const mean = static_cast<double*>(scratch);
  double* const squares = mean + p.period;
  std::fill_n(mean, 2 * p.period, 0.0);
  const int64_t all = p.elements / p.period, chunk = chunk_rows(p.period);
  constexpr int64_t block = most_vectors * T::width;
  for (int64_t row = 0; row < all; row += chunk) {
    const int64_t rows = std::min(chunk, all - row);
    for (int64_t j = 0; j < p.period; j += block) {
      const S* const at = x + row * p.period + j;
      const int64_t values = std::min(block, p.period - j), vectors = (values + T::width - 1) / T::width;
      const int64_t last = values - (vectors - 1) * T::width;
      if (vectors == 4) {
        merge_moments<4, T>(at, rows, p.period, last, row, mean + j, squares + j);
      } else if (vectors == 3) {
        merge_moments<3, T>(at, rows, p.period, last, row, mean + j, squares + j);
      } else if (vectors == 2) {
        merge_moments<2, T>(at, rows, p.period, last, row, mean + j, squares + j);
      } else {
        merge_moments<1, T>(at, rows, p.period, last, row, mean + j, squares + j);
      }
    }
  }
  merge_short_row(x + all * p.period, p.elements % p.period, all, mean, squares);
  join_moments(p, mean, squares, results);
}

// The coefficients of columns.
template <class E>
struct Columns {
  const E *center, *scale, *shift;
};

template <class T, class S>
inline T normalized(const Columns<typename T::element>& c, int64_t j, T x, const S* residual, int64_t n) {
  const T z = T::fma(x - load_up_to<T>(c.center + j, n), load_up_to<T>(c.scale + j, n),
                     load_up_to<T>(c.shift + j, n));
  return residual == nullptr ? z : z + load_up_to<T>(residual, n);
}

template <Activation activation, class T, class S>
inline void apply_to(const Columns<typename T::element>& c, int64_t j, const S* x, const S* residual,
                     int64_t n, T slope, bool stream, S* y) {
  prefetch(reinterpret_cast<const char*>(x) + ahead);
  const T z = normalized<T>(c, j, load_up_to<T>(x, n), residual, n);
  store_up_to(activate<activation>(z, slope), y, n, stream);
}

template <Activation activation, class T, class S>
void apply_as(const Piece& p, void* scratch) {
  using E = typename T::element;
  E* columns = static_cast<E*>(scratch);
  const Columns<E> c{of_columns(p.center, p, columns), of_columns(p.scale, p, columns),
                     of_columns(p.shift, p, columns)};
  const S* x = static_cast<const S*>(p.x);
  const S* residual = static_cast<const S*>(p.residual);
  S* y = static_cast<S*>(p.y);
  const T slope = T::broadcast(static_cast<E>(p.negative_slope));
  const bool stream = can_stream<T, S>(p, y);
  const int64_t row = row_of(p), moves = p.channels == 1 ? 0 : 1;
  for (int64_t left = p.elements; left > 0; left -= row) {
    const int64_t values = std::min(row, left), whole = values / T::width * T::width;
    const S* r = residual;
    for (int64_t j = 0; j < whole; j += T::width) {
      apply_to<activation, T>(c, j * moves, x + j, r == nullptr ? r : r + j, T::width, slope, stream, y + j);
    }
    if (whole < values) {
      apply_to<activation, T>(c, whole * moves, x + whole, r == nullptr ? r : r + whole, values - whole,
                              slope, false, y + whole);
    }
    x += values;
    y += values;
    if (residual != nullptr) residual += values;
  }
  if (stream) VecBytes::stream_end();
}

template <class T, class S>
void apply(const Piece& p, double*, void* scratch) {
  switch (p.activation) {
    case Activation::none:
      return apply_as<Activation::none, T, S>(p, scratch);
    case Activation::relu:
      return apply_as<Activation::relu, T, S>(p, scratch);
    case Activation::prelu:
      return apply_as<Activation::prelu, T, S>(p, scratch);
    case Activation::silu:
      return apply_as<Activation::silu, T, S>(p, scratch);
    case Activation::gelu:
      return apply_as<Activation::gelu, T, S>(p, scratch);
    case Activation::gelu_tanh:
      return apply_as<Activation::gelu_tanh, T, S>(p, scratch);
  }
}

// dz of one vector. x - center is needed again.
template <Activation activation, class T, class S>
inline T gradient_of(const Columns<typename T::element>& c, int64_t j, T x, const S* grad, const S* residual,
                     int64_t n, T slope) {
  const T dy = load_up_to<T>(grad, n);
  if constexpr (activation == Activation::none) return dy;
  return activation_gradient<activation>(dy, normalized<T>(c, j, x, residual, n), slope);
}

// Adds the sums of `rows` rows of up to `vectors` vectors, the last of `last` values, to those of their
// columns.
template <Activation activation, int vectors, class T, class S>
inline void add_gradient_sums(const Columns<typename T::element>& c, int64_t j, const S* x, const S* grad,
                              const S* residual, int64_t rows, int64_t period, int64_t last, T slope,
                              double* dz_sums, double* products) {
  using E = typename T::element;
  T sum[vectors], product[vectors];
#pragma GCC unroll 16
  for (int v = 0; v < vectors; ++v) sum[v] = product[v] = T::zero();
  for (int64_t row = 0; row < rows; ++row) {
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) {
      const int64_t at = row * period + v * T::width, n = v + 1 < vectors ? T::width : last;
      prefetch(x + at + rows * period);
      prefetch(grad + at + rows * period);
      const T value = load_up_to<T>(x + at, n);
      const T dz = gradient_of<activation>(c, j + v * T::width, value, grad + at,
                                           residual == nullptr ? residual : residual + at, n, slope);
      sum[v] = sum[v] + dz;
      product[v] = T::fma(dz, value - load_up_to<T>(c.center + j + v * T::width, n), product[v]);
    }
  }
  E sums[vectors * T::width], more[vectors * T::width];
#pragma GCC unroll 16
  for (int v = 0; v < vectors; ++v) {
    sum[v].store(sums + v * T::width);
    product[v].store(more + v * T::width);
  }
  for (int64_t i = 0; i < (vectors - 1) * T::width + last; ++i) {
    dz_sums[i] += static_cast<double>(sums[i]);
    products[i] += static_cast<double>(more[i]);
  }
}

template <Activation activation, class T, class S>
void gradient_sums_as(const Piece& p, double* results, void* scratch) {
  using E = typename T::element;
  double* const sums = static_cast<double*>(scratch);
  double* const products = sums + p.period;
  E* columns = reinterpret_cast<E*>(products + p.period);
  const Columns<E> c{of_columns(p.center, p, columns), of_columns(p.scale, p, columns),
                     of_columns(p.shift, p, columns)};
  std::fill_n(sums, 2 * p.period, 0.0);
  const T slope = T::broadcast(static_cast<E>(p.negative_slope));
  const int64_t chunk = chunk_rows(p.period);
  constexpr int64_t block = most_vectors * T::width;
  for (int64_t begin = 0; begin < p.elements;) {
    // The last row by itself where it is shorter.
    const int64_t left = p.elements - begin, columns_left = std::min(left, p.period);
    const int64_t rows = std::min(chunk, std::max<int64_t>(left / p.period, 1));
    for (int64_t j = 0; j < columns_left; j += block) {
      const int64_t values = std::min(block, columns_left - j), vectors = (values + T::width - 1) / T::width;
      const int64_t last = values - (vectors - 1) * T::width;
      const S* const x = static_cast<const S*>(p.x) + begin + j;
      const S* const grad = static_cast<const S*>(p.grad) + begin + j;
      const S* const residual =
          p.residual == nullptr ? nullptr : static_cast<const S*>(p.residual) + begin + j;
      if (vectors == 4) {
        add_gradient_sums<activation, 4>(c, j, x, grad, residual, rows, p.period, last, slope, sums + j,
                                         products + j);
      } else if (vectors == 3) {
        add_gradient_sums<activation, 3>(c, j, x, grad, residual, rows, p.period, last, slope, sums + j,
                                         products + j);
      } else if (vectors == 2) {
        add_gradient_sums<activation, 2>(c, j, x, grad, residual, rows, p.period, last, slope, sums + j,
                                         products + j);
      } else {
        add_gradient_sums<activation, 1>(c, j, x, grad, residual, rows, p.period, last, slope, sums + j,
                                         products + j);
      }
    }
    begin += left < p.period ? left : rows * p.period;
  }
  // Columns of the same channel, the period being a power of two where there is but one.
  if (p.channels == 1) {
    for (int64_t half = p.period / 2; half > 0; half /= 2) {
      for (int64_t j = 0; j < half; ++j) {
        sums[j] += sums[half + j];
        products[j] += products[half + j];
      }
    }
    results[0] = sums[0];
    results[1] = products[0];
    return;
  }
  std::fill_n(results, 2 * p.channels, 0.0);
  for (int64_t first = 0; first < p.period; first += p.channels) {
    for (int64_t ch = 0; ch < p.channels; ++ch) {
      results[ch] += sums[first + ch];
      results[p.channels + ch] += products[first + ch];
    }
  }
}

template <class T, class S>
void gradient_sums(const Piece& p, double* results, void* scratch) {
  switch (p.activation) {
    case Activation::none:
      return gradient_sums_as<Activation::none, T, S>(p, results, scratch);
    case Activation::relu:
      return gradient_sums_as<Activation::relu, T, S>(p, results, scratch);
    case Activation::prelu:
      return gradient_sums_as<Activation::prelu, T, S>(p, results, scratch);
    case Activation::silu:
      return gradient_sums_as<Activation::silu, T, S>(p, results, scratch);
    case Activation::gelu:
      return gradient_sums_as<Activation::gelu, T, S>(p, results, scratch);
    case Activation::gelu_tanh:
      return gradient_sums_as<Activation::gelu_tanh, T, S>(p, results, scratch);
  }
}

template <class E>
struct GradientColumns {
  const E *dz_scale, *x_scale, *constant;
};

template <Activation activation, class T, class S>
inline void gradient_at(const Piece& p, const Columns<typename T::element>& c,
                        const GradientColumns<typename T::element>& g, int64_t j, int64_t at, int64_t n,
                        T slope, bool stream) {
  const S* const x = static_cast<const S*>(p.x) + at;
  const S* const grad = static_cast<const S*>(p.grad) + at;
  const S* const residual = p.residual == nullptr ? nullptr : static_cast<const S*>(p.residual) + at;
  prefetch(reinterpret_cast<const char*>(x) + ahead);
  prefetch(reinterpret_cast<const char*>(grad) + ahead);
  const T value = load_up_to<T>(x, n);
  const T dz = gradient_of<activation>(c, j, value, grad, residual, n, slope);
  const T deviation = value - load_up_to<T>(c.center + j, n);
  const T dx = T::fma(dz, load_up_to<T>(g.dz_scale + j, n),
                      T::fma(deviation, load_up_to<T>(g.x_scale + j, n), load_up_to<T>(g.constant + j, n)));
  if (p.dz_copy != nullptr) store_up_to(dz, static_cast<S*>(p.dz_copy) + at, n, false);
  store_up_to(dx, static_cast<S*>(p.y) + at, n, stream);
}

template <Activation activation, class T, class S>
void gradient_as(const Piece& p, void* scratch) {
  using E = typename T::element;
  E* columns = static_cast<E*>(scratch);
  const Columns<E> c{of_columns(p.center, p, columns), of_columns(p.scale, p, columns),
                     of_columns(p.shift, p, columns)};
  const GradientColumns<E> g{of_columns(p.dz_scale, p, columns), of_columns(p.x_scale, p, columns),
                             of_columns(p.constant, p, columns)};
  const T slope = T::broadcast(static_cast<E>(p.negative_slope));
  const bool stream = can_stream<T, S>(p, p.y);
  const int64_t row = row_of(p), moves = p.channels == 1 ? 0 : 1;
  for (int64_t begin = 0; begin < p.elements; begin += row) {
    const int64_t values = std::min(row, p.elements - begin), whole = values / T::width * T::width;
    for (int64_t j = 0; j < whole; j += T::width) {
      gradient_at<activation, T, S>(p, c, g, j * moves, begin + j, T::width, slope, stream);
    }
    if (whole < values) {
      gradient_at<activation, T, S>(p, c, g, whole * moves, begin + whole, values - whole, slope, false);
    }
  }
  if (stream) VecBytes::stream_end();
}

template <class T, class S>
void gradient(const Piece& p, double*, void* scratch) {
  switch (p.activation) {
    case Activation::none:
      return gradient_as<Activation::none, T, S>(p, scratch);
    case Activation::relu:
      return gradient_as<Activation::relu, T, S>(p, scratch);
    case Activation::prelu:
      return gradient_as<Activation::prelu, T, S>(p, scratch);
    case Activation::silu:
      return gradient_as<Activation::silu, T, S>(p, scratch);
    case Activation::gelu:
      return gradient_as<Activation::gelu, T, S>(p, scratch);
    case Activation::gelu_tanh:
      return gradient_as<Activation::gelu_tanh, T, S>(p, scratch);
  }
}

#define VOLNET_DEFINE(DTYPE, T, S)                                                                 \
  void moments_##DTYPE(const Piece& p, double* r, void* scratch) { moments<T, S>(p, r, scratch); } \
  void apply_##DTYPE(const Piece& p, double* r, void* scratch) { apply<T, S>(p, r, scratch); }     \
  void gradient_sums_##DTYPE(const Piece& p, double* r, void* scratch) {                           \
    gradient_sums<T, S>(p, r, scratch);                                                            \
  }                                                                                                \
  void gradient_##DTYPE(const Piece& p, double* r, void* scratch) { gradient<T, S>(p, r, scratch); }
VOLNET_DEFINE(f32, Vec, float)
VOLNET_DEFINE(bf16, Vec, bfloat16)

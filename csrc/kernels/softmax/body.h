// Included inside volnet::softmax::VOLNET_ISA, after Vec. softmax.h is the specification.
#include "isa/vec_math.h"

// e^x for x <= 0, for results that are stored as S; what is below the normal numbers is zero, so that masked
// channels get nothing.
template <class S, class T>
inline T power(T x) {
  if constexpr (std::is_same_v<S, double>) {
    return exponential(x);
  } else {
    const T least = T::broadcast(-87.3f);
    if constexpr (std::is_same_v<S, float>) {
      return T::select(T::greater(least, x), T::zero(), exponential(x));
    } else {
      const T binary = T::max(least, x) * T::broadcast(1.44269504f);
      return T::select(T::greater(least, x), T::zero(), power_of_two_for_bfloat16(binary));
    }
  }
}

template <class T, class S>
inline T load_up_to(const S* p, int64_t n) {
  return n >= T::width ? T::load(p) : T::load(p, n);
}

template <class T, class S>
inline void store_up_to(T value, S* p, int64_t n, bool stream) {
  if (n < T::width) {
    value.store(p, n);
  } else if (stream) {
    value.stream(p);
  } else {
    value.store(p);
  }
}

// The hardware's prefetcher stops at the end of a page.
template <class S>
inline void prefetch(const S* p) {
  __builtin_prefetch(reinterpret_cast<const char*>(p) + 2048);
}

// As many vectors of voxels are in work at a time.
static constexpr int64_t vectors = 4;
// Of voxels that n are left of: the whole vector's, or up to the end.
template <class T, class S>
inline T load_voxels(const S* p, int64_t i, int64_t n) {
  return load_up_to<T>(p + i * T::width, n - i * T::width);
}

template <class T, class S>
void forward(const Forward& p, int64_t begin, int64_t end, void* scratch) {
  using E = typename T::element;
  constexpr int64_t block = vectors * T::width;
  E* const powers = static_cast<E*>(scratch);  // [channels, block]
  for (int64_t v = begin; v < end; v += block) {
    const int64_t n = end - v, used = std::min(vectors, (n + T::width - 1) / T::width);
    const S* const x = static_cast<const S*>(p.x) + v;
    S* const y = static_cast<S*>(p.y) + v;
    T greatest[vectors], sum[vectors];
#pragma GCC unroll 16
    for (int64_t i = 0; i < vectors; ++i) {
      greatest[i] = T::broadcast(-std::numeric_limits<E>::infinity());
      sum[i] = T::zero();
    }
    for (int64_t c = 0; c < p.channels; ++c) {
#pragma GCC unroll 16
      for (int64_t i = 0; i < vectors; ++i) {
        if (i >= used) break;
        prefetch(x + c * p.stride + i * T::width);
        const T value = load_voxels<T>(x + c * p.stride, i, n);
        value.store(powers + c * block + i * T::width);
        greatest[i] = T::max(greatest[i], value);
      }
    }
    for (int64_t c = 0; c < p.channels; ++c) {
#pragma GCC unroll 16
      for (int64_t i = 0; i < vectors; ++i) {
        E* const at = powers + c * block + i * T::width;
        const T value = power<S>(T::load(at) - greatest[i]);
        value.store(at);
        sum[i] = sum[i] + value;
      }
    }
#pragma GCC unroll 16
    for (int64_t i = 0; i < vectors; ++i) sum[i] = T::broadcast(1) / sum[i];
    for (int64_t c = 0; c < p.channels; ++c) {
#pragma GCC unroll 16
      for (int64_t i = 0; i < vectors; ++i) {
        if (i >= used) break;
        const T value = T::load(powers + c * block + i * T::width) * sum[i];
        store_up_to(value, y + c * p.stride + i * T::width, n - i * T::width, p.stream);
      }
    }
  }
  if (p.stream) VecBytes::stream_end();
}

template <class T, class S>
void backward(const Backward& p, int64_t begin, int64_t end, void* scratch) {
  using E = typename T::element;
  constexpr int64_t block = vectors * T::width;
  E* const values = static_cast<E*>(scratch);  // [channels, 2, block]: grad and y
  for (int64_t v = begin; v < end; v += block) {
    const int64_t n = end - v, used = std::min(vectors, (n + T::width - 1) / T::width);
    const S *const grad = static_cast<const S*>(p.grad) + v, *const y = static_cast<const S*>(p.y) + v;
    S* const dx = static_cast<S*>(p.dx) + v;
    T sum[vectors];
#pragma GCC unroll 16
    for (int64_t i = 0; i < vectors; ++i) sum[i] = T::zero();
    for (int64_t c = 0; c < p.channels; ++c) {
#pragma GCC unroll 16
      for (int64_t i = 0; i < vectors; ++i) {
        if (i >= used) break;
        prefetch(grad + c * p.stride + i * T::width);
        prefetch(y + c * p.stride + i * T::width);
        const T g = load_voxels<T>(grad + c * p.stride, i, n), value = load_voxels<T>(y + c * p.stride, i, n);
        E* const at = values + 2 * c * block + i * T::width;
        g.store(at);
        value.store(at + block);
        sum[i] = T::fma(g, value, sum[i]);
      }
    }
    for (int64_t c = 0; c < p.channels; ++c) {
#pragma GCC unroll 16
      for (int64_t i = 0; i < vectors; ++i) {
        if (i >= used) break;
        const E* const at = values + 2 * c * block + i * T::width;
        const T d = T::load(at + block) * (T::load(at) - sum[i]);
        store_up_to(d, dx + c * p.stride + i * T::width, n - i * T::width, p.stream);
      }
    }
  }
  if (p.stream) VecBytes::stream_end();
}

template <class T, class S>
void forward_rows(const Forward& p, int64_t begin, int64_t end, void* scratch) {
  using E = typename T::element;
  constexpr E least = -std::numeric_limits<E>::infinity();
  E* const powers = static_cast<E*>(scratch);
  const int64_t whole = p.channels / T::width * T::width, tail = p.channels - whole;
  for (int64_t row = begin; row < end; ++row) {
    const S* const x = static_cast<const S*>(p.x) + row * p.channels;
    S* const y = static_cast<S*>(p.y) + row * p.channels;
    T most = T::broadcast(least);
    for (int64_t c = 0; c < whole; c += T::width) {
      prefetch(x + c);
      most = T::max(most, T::load(x + c));
    }
    E m = most.greatest();
    for (int64_t c = whole; c < p.channels; ++c) m = std::max(m, static_cast<E>(to_float(x[c])));
    const T at = T::broadcast(m);
    T sum = T::zero();
    for (int64_t c = 0; c < whole; c += T::width) {
      const T value = power<S>(T::load(x + c) - at);
      value.store(powers + c);
      sum = sum + value;
    }
    if (tail > 0) {
      power<S>(T::load(x + whole, tail) - at).store(powers + whole);
      sum = sum + T::load(powers + whole, tail);
    }
    const T share = T::broadcast(1 / sum.sum());
    for (int64_t c = 0; c < p.channels; c += T::width) {
      store_up_to(T::load(powers + c) * share, y + c, p.channels - c, p.stream);
    }
  }
  if (p.stream) VecBytes::stream_end();
}

template <class T, class S>
void backward_rows(const Backward& p, int64_t begin, int64_t end, void*) {
  for (int64_t row = begin; row < end; ++row) {
    const S* const grad = static_cast<const S*>(p.grad) + row * p.channels;
    const S* const y = static_cast<const S*>(p.y) + row * p.channels;
    S* const dx = static_cast<S*>(p.dx) + row * p.channels;
    T sum = T::zero();
    for (int64_t c = 0; c < p.channels; c += T::width) {
      prefetch(grad + c);
      prefetch(y + c);
      const int64_t n = p.channels - c;
      sum = T::fma(load_up_to<T>(grad + c, n), load_up_to<T>(y + c, n), sum);
    }
    const T mean = T::broadcast(sum.sum());
    for (int64_t c = 0; c < p.channels; c += T::width) {
      const int64_t n = p.channels - c;
      const T g = load_up_to<T>(grad + c, n) - mean;
      store_up_to(load_up_to<T>(y + c, n) * g, dx + c, n, p.stream);
    }
  }
  if (p.stream) VecBytes::stream_end();
}

#define VOLNET_DEFINE(DTYPE, T, S)                                                           \
  void forward_##DTYPE(const Forward& p, int64_t begin, int64_t end, void* scratch) {        \
    forward<T, S>(p, begin, end, scratch);                                                   \
  }                                                                                          \
  void forward_rows_##DTYPE(const Forward& p, int64_t begin, int64_t end, void* scratch) {   \
    forward_rows<T, S>(p, begin, end, scratch);                                              \
  }                                                                                          \
  void backward_##DTYPE(const Backward& p, int64_t begin, int64_t end, void* scratch) {      \
    backward<T, S>(p, begin, end, scratch);                                                  \
  }                                                                                          \
  void backward_rows_##DTYPE(const Backward& p, int64_t begin, int64_t end, void* scratch) { \
    backward_rows<T, S>(p, begin, end, scratch);                                             \
  }
VOLNET_DEFINE(f32, Vec, float)
VOLNET_DEFINE(bf16, Vec, bfloat16)

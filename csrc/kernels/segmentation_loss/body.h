// Included inside volnet::segmentation_loss::VOLNET_ISA, after Vec. segmentation_loss.h is the specification.
#include "isa/vec_math.h"

// The hardware's prefetcher stops at the end of a page.
template <class S>
inline void prefetch(const S* p) {
  __builtin_prefetch(reinterpret_cast<const char*>(p) + 2048);
}

// e^x for x <= 0; what is below the normal numbers is zero.
template <class T>
inline T power(T x) {
  if constexpr (std::is_same_v<typename T::element, double>) {
    return exponential(x);
  } else {
    return T::select(T::greater(T::broadcast(-87.3f), x), T::zero(), exponential(x));
  }
}

// ln x in place for x >= 1, infinity and NaN: of floats within 1.5 ulp. The exponent is in the bits, which
// plain loops over memory reach; compilers make vectors of them.
inline void logarithms(float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    int32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    // x = 2^e (1 + r) with 1 + r in [sqrt(1/2), sqrt(2)); the coefficients are a minimax fit of ours.
    const int32_t e = (bits - 0x3f3504f3) >> 23;
    const int32_t mantissa = bits - e * (1 << 23);
    float r;
    std::memcpy(&r, &mantissa, sizeof r);
    r = r - 1.0f;
    float p = -0.0763444602f;
    p = p * r + 0.127615690f;
    p = p * r - 0.131601974f;
    p = p * r + 0.142017603f;
    p = p * r - 0.166233554f;
    p = p * r + 0.200012267f;
    p = p * r - 0.250008225f;
    p = p * r + 0.333333313f;
    const float n_ln2 = static_cast<float>(e);
    const float square = r * r;
    float y = p * square * r + n_ln2 * -2.12194440e-4f;
    y = y - 0.5f * square + r + n_ln2 * 0.693359375f;
    const bool finite = bits < 0x7f800000;
    x[i] = finite ? y : x[i];
  }
}
inline void logarithms(double* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = std::log(x[i]);
}

// ln(1 + u) for 0 <= u <= 1, of small u too within 2 ulp: 2 artanh(u / (2 + u)).
template <class T>
inline T log_one_plus(T u) {
  if constexpr (std::is_same_v<typename T::element, double>) {
    return {std::log1p(u.v)};
  } else {
    const T z = u / (u + T::broadcast(2.0f)), square = z * z;
    T p = T::broadcast(0.281785922f);
    p = T::fma(p, square, T::broadcast(0.279605390f));
    p = T::fma(p, square, T::broadcast(0.400249156f));
    p = T::fma(p, square, T::broadcast(0.666663145f));
    p = T::fma(p, square, T::broadcast(2.0f));
    return p * z;
  }
}

template <class T>
inline T negative(T x) {
  return T::zero() - x;
}

// Voxels of a block that are ignored, or lie beyond its end, have this label; others are -1 or more.
static constexpr float no_label = -2;

// A block's target as the kernels read it: labels less `first`, of planes 0 or no_label; and the planes.
template <class E>
struct BlockTarget {
  E* label;   // [block]
  E* planes;  // [channels, block], where there are any
};

template <class Label, class E>
void read_labels(const Target& target, int64_t channels, int64_t v, int64_t n, E* to, WrongLabel* wrong) {
  const Label* const from = static_cast<const Label*>(target.data) + v;
  const auto count = static_cast<uint64_t>(channels + target.first);
  int any_wrong = 0;
  for (int64_t i = 0; i < n; ++i) {
    const auto label = static_cast<int64_t>(from[i]);
    const bool known = static_cast<uint64_t>(label) < count;
    const bool ignored = target.ignores && label == target.ignored;
    any_wrong |= static_cast<int>(!known && !ignored);
    to[i] = known && !ignored ? static_cast<E>(static_cast<int32_t>(label - target.first)) : E{no_label};
  }
  if (!any_wrong || wrong == nullptr || wrong->found) return;
  for (int64_t i = 0; i < n; ++i) {
    const auto label = static_cast<int64_t>(from[i]);
    if (static_cast<uint64_t>(label) < count || (target.ignores && label == target.ignored)) continue;
    *wrong = {true, v + i, label};
    return;
  }
}

template <class X, class E>
void read_planes(const Target& target, int64_t channels, int64_t v, int64_t n, E* to) {
  for (int64_t c = 0; c < channels; ++c) {
    const X* const from = static_cast<const X*>(target.data) + c * target.stride + v;
    for (int64_t i = 0; i < n; ++i) {
      if constexpr (std::is_same_v<X, bfloat16>) {
        to[c * block + i] = to_float(from[i]);
      } else {
        to[c * block + i] = static_cast<E>(from[i]);
      }
    }
    std::fill_n(to + c * block + n, block - n, E{0});
  }
}

template <class X, class E>
void read_as(const Target& target, int64_t channels, int64_t v, int64_t n, const BlockTarget<E>& to,
             WrongLabel* wrong) {
  if (target.planes) {
    std::fill_n(to.label, n, E{0});
    read_planes<X>(target, channels, v, n, to.planes);
  } else if constexpr (std::is_integral_v<X>) {
    read_labels<X>(target, channels, v, n, to.label, wrong);
  }
  std::fill_n(to.label + n, block - n, E{no_label});
}

template <class E>
void read(const Target& target, int64_t channels, int64_t v, int64_t n, const BlockTarget<E>& to,
          WrongLabel* wrong) {
  switch (target.element) {
    case Element::uint8:
      return read_as<uint8_t>(target, channels, v, n, to, wrong);
    case Element::int16:
      return read_as<int16_t>(target, channels, v, n, to, wrong);
    case Element::int32:
      return read_as<int32_t>(target, channels, v, n, to, wrong);
    case Element::int64:
      return read_as<int64_t>(target, channels, v, n, to, wrong);
    case Element::float32:
      return read_as<float>(target, channels, v, n, to, wrong);
    case Element::float64:
      return read_as<double>(target, channels, v, n, to, wrong);
    case Element::bfloat16:
      return read_as<bfloat16>(target, channels, v, n, to, wrong);
  }
}

// t of a channel's vector of voxels.
template <class T, bool planes>
inline T target_at(const BlockTarget<typename T::element>& target, int64_t c, int64_t i) {
  if constexpr (planes) {
    return T::load(target.planes + c * block + i * T::width);
  } else {
    const T label = T::load(target.label + i * T::width);
    return T::select(T::equal(label, T::broadcast(static_cast<typename T::element>(c))), T::broadcast(1),
                     T::zero());
  }
}

template <class T>
inline typename T::Mask counted(const BlockTarget<typename T::element>& target, int64_t i) {
  return T::greater(T::load(target.label + i * T::width), T::broadcast(-1.5f));
}

template <class T, class S>
inline T load_voxels(const S* p, int64_t i, int64_t n) {
  return n - i * T::width >= T::width ? T::load(p + i * T::width)
                                      : T::load(p + i * T::width, n - i * T::width);
}

template <class T, class S>
inline void store_voxels(T value, S* p, int64_t i, int64_t n, bool stream) {
  if (n - i * T::width < T::width) {
    value.store(p + i * T::width, n - i * T::width);
  } else if (stream) {
    value.stream(p + i * T::width);
  } else {
    value.store(p + i * T::width);
  }
}

// The softmax of a block: powers[c, v] = e^(x - shift[v]) and x itself.
template <class T, class S>
struct Powers {
  using E = typename T::element;
  E *values, *powers;  // [channels, block]
  E *shift, *sum;      // [block]: the greatest logit of a voxel, and the sum of its powers

  inline void compute(const S* x, int64_t channels, int64_t stride, int64_t n) const {
    const int64_t used = (n + T::width - 1) / T::width;
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t i = 0; i < used; ++i) {
        prefetch(x + c * stride + i * T::width);
        const T value = load_voxels<T>(x + c * stride, i, n);
        value.store(values + c * block + i * T::width);
        E* const most = shift + i * T::width;
        (c == 0 ? value : T::max(T::load(most), value)).store(most);
      }
    }
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t i = 0; i < used; ++i) {
        const int64_t at = i * T::width;
        const T value = power(T::load(values + c * block + at) - T::load(shift + at));
        value.store(powers + c * block + at);
        (c == 0 ? value : T::load(sum + at) + value).store(sum + at);
      }
    }
  }
};

// Both penalties of a logit, its probability, and what their derivatives need.
template <class T>
struct Logistic {
  using E = typename T::element;
  T p, q, minus_ln_p, minus_ln_q;

  explicit inline Logistic(T x) {
    const T size = T::max(x, negative(x)), one = T::broadcast(1);
    const T u = exponential(negative(size)), share = one / (one + u), log = log_one_plus(u);
    const auto positive = T::greater(x, T::zero());
    p = T::select(positive, one, u) * share;
    q = T::select(positive, u, one) * share;
    minus_ln_p = T::max(negative(x), T::zero()) + log;
    minus_ln_q = T::max(x, T::zero()) + log;
  }

  // base^gamma with the base's -ln.
  static inline T focus(T base, T minus_ln, E gamma) {
    if (gamma == 0) return T::broadcast(1);
    if (gamma == 2) return base * base;
    return exponential(T::broadcast(-gamma) * minus_ln);
  }
  inline T hit(E gamma) const { return focus(q, minus_ln_q, gamma) * minus_ln_p; }
  inline T miss(E gamma) const { return focus(p, minus_ln_p, gamma) * minus_ln_q; }
  // Their derivatives by x.
  inline T hit_slope(E gamma) const {
    if (gamma == 0) return negative(q);
    return negative(focus(q, minus_ln_q, gamma) * T::fma(T::broadcast(gamma) * p, minus_ln_p, q));
  }
  inline T miss_slope(E gamma) const {
    if (gamma == 0) return p;
    return focus(p, minus_ln_p, gamma) * T::fma(T::broadcast(gamma) * q, minus_ln_q, p);
  }
};

// weight * penalty, where a weight of nothing makes nothing of an infinite penalty.
template <class T>
inline T weighted(T weight, T penalty) {
  return T::select(T::equal(weight, T::zero()), T::zero(), weight * penalty);
}

// Adds up in lanes, [5, channels, width], and from time to time in doubles.
template <class T>
class Lanes {
 public:
  using E = typename T::element;
  Lanes(E* lanes, int64_t channels, double* sums) : lanes_(lanes), channels_(channels), sums_(sums) {
    std::fill_n(lanes, 5 * channels * T::width, E{0});
  }
  inline void add(int64_t row, int64_t c, T value) const {
    E* const at = lanes_ + (row * channels_ + c) * T::width;
    (T::load(at) + value).store(at);
  }
  void flush() const {
    for (int64_t i = 0; i < 5 * channels_; ++i) {
      sums_[i] += static_cast<double>(T::load(lanes_ + i * T::width).sum());
    }
    std::fill_n(lanes_, 5 * channels_ * T::width, E{0});
  }

 private:
  E* lanes_;
  int64_t channels_;
  double* sums_;
};

template <class T, class S>
struct Scratch {
  using E = typename T::element;
  Powers<T, S> softmax;
  BlockTarget<E> target;
  E* lanes;
  Scratch(void* memory, int64_t channels) {
    E* const begin = static_cast<E*>(memory);
    const int64_t volume = channels * block;
    softmax = {begin, begin + volume, begin + 3 * volume, begin + 3 * volume + block};
    target = {begin + 3 * volume + 2 * block, begin + 2 * volume};
    lanes = begin + 3 * volume + 3 * block;
  }
};

template <class T, class S, bool planes>
void sums_of(const Sums& p, int64_t begin, int64_t end, void* memory) {
  using E = typename T::element;
  constexpr int64_t blocks_a_flush = 16;
  const Scratch<T, S> scratch(memory, p.channels);
  const Powers<T, S>& softmax = scratch.softmax;
  const BlockTarget<E>& target = scratch.target;
  const Lanes<T> lanes(scratch.lanes, p.channels, p.sums);
  const auto gamma = static_cast<E>(p.penalty.gamma);
  int64_t until_flush = blocks_a_flush, voxels = 0;
  for (int64_t v = begin; v < end; v += block) {
    const int64_t n = std::min(block, end - v), used = (n + T::width - 1) / T::width;
    const S* const x = static_cast<const S*>(p.x) + v;
    read(p.target, p.channels, v, n, target, p.wrong);
    for (int64_t i = 0; i < n; ++i) voxels += target.label[i] > E{-1.5};
    if (!p.penalty.sigmoid) {
      softmax.compute(x, p.channels, p.stride, n);
      E* const ln_sum = softmax.shift;  // of the powers of x
      E logs[block];
      std::copy_n(softmax.sum, used * T::width, logs);
      logarithms(logs, used * T::width);
      for (int64_t i = 0; i < used; ++i) {
        const int64_t at = i * T::width;
        (T::load(ln_sum + at) + T::load(logs + at)).store(ln_sum + at);
        (T::broadcast(1) / T::load(softmax.sum + at)).store(softmax.sum + at);
      }
    }
    for (int64_t c = 0; c < p.channels; ++c) {
      T share = T::zero(), overlap = T::zero(), truth = T::zero(), hits = T::zero(), misses = T::zero();
      for (int64_t i = 0; i < used; ++i) {
        const int64_t at = i * T::width;
        const auto counts = counted<T>(target, i);
        const T t = target_at<T, planes>(target, c, i);
        T probability, hit, miss, rest = T::broadcast(1);
        if (p.penalty.sigmoid) {
          prefetch(x + c * p.stride + at);
          const Logistic<T> logistic(load_voxels<T>(x + c * p.stride, i, n));
          probability = logistic.p;
          hit = logistic.hit(gamma);
          miss = logistic.miss(gamma);
          rest = rest - t;
        } else {
          probability = T::load(softmax.powers + c * block + at) * T::load(softmax.sum + at);
          hit = T::load(softmax.shift + at) - T::load(softmax.values + c * block + at);
          miss = hit;
        }
        probability = T::select(counts, probability, T::zero());
        share = share + probability;
        overlap = T::fma(t, probability, overlap);
        truth = truth + t;
        hits = hits + weighted(t, hit);
        misses = misses + T::select(counts, weighted(rest, miss), T::zero());
      }
      lanes.add(0, c, share);
      lanes.add(1, c, overlap);
      lanes.add(2, c, truth);
      lanes.add(3, c, hits);
      lanes.add(4, c, misses);
    }
    if (--until_flush == 0) {
      lanes.flush();
      until_flush = blocks_a_flush;
    }
  }
  lanes.flush();
  for (int64_t c = 0; c < p.channels; ++c) p.sums[5 * p.channels + c] += static_cast<double>(voxels);
}

template <class T, class S, bool planes>
void voxels_of(const Voxels& p, int64_t begin, int64_t end, void* memory) {
  using E = typename T::element;
  const Scratch<T, S> scratch(memory, p.channels);
  const Powers<T, S>& softmax = scratch.softmax;
  const BlockTarget<E>& target = scratch.target;
  const auto gamma = static_cast<E>(p.penalty.gamma);
  const E *const hit_weight = static_cast<const E*>(p.coefficients), *const miss_weight =
                                                                         hit_weight + p.channels;
  for (int64_t v = begin; v < end; v += block) {
    const int64_t n = std::min(block, end - v), used = (n + T::width - 1) / T::width;
    const S* const x = static_cast<const S*>(p.x) + v;
    E* const y = static_cast<E*>(p.y) + v;
    read(p.target, p.channels, v, n, target, p.wrong);
    E ln_sum[block], total[block] = {};
    if (!p.penalty.sigmoid) {
      softmax.compute(x, p.channels, p.stride, n);
      std::copy_n(softmax.sum, used * T::width, ln_sum);
      logarithms(ln_sum, used * T::width);
    }
    for (int64_t c = 0; c < p.channels; ++c) {
      const T hit_c = T::broadcast(hit_weight[c]), miss_c = T::broadcast(miss_weight[c]);
      for (int64_t i = 0; i < used; ++i) {
        const int64_t at = i * T::width;
        const T t = target_at<T, planes>(target, c, i);
        T hit, miss, rest = T::broadcast(1);
        if (p.penalty.sigmoid) {
          const Logistic<T> logistic(load_voxels<T>(x + c * p.stride, i, n));
          hit = logistic.hit(gamma);
          miss = logistic.miss(gamma);
          rest = rest - t;
        } else {
          hit =
              T::load(ln_sum + at) + (T::load(softmax.shift + at) - T::load(softmax.values + c * block + at));
          miss = hit;
        }
        const T both = weighted(hit_c * t, hit) + weighted(miss_c * rest, miss);
        (T::load(total + at) + both).store(total + at);
      }
    }
    for (int64_t i = 0; i < used; ++i) {
      const T all = T::load(total + i * T::width);
      store_voxels(T::select(counted<T>(target, i), all, T::zero()), y, i, n, false);
    }
  }
}

template <class T, class S, bool planes>
void backward_of(const Backward& p, int64_t begin, int64_t end, void* memory) {
  using E = typename T::element;
  const Scratch<T, S> scratch(memory, p.channels);
  const Powers<T, S>& softmax = scratch.softmax;
  const BlockTarget<E>& target = scratch.target;
  const auto gamma = static_cast<E>(p.penalty.gamma);
  const E* const a = static_cast<const E*>(p.coefficients);
  const E *const b = a + p.channels, *const hit = b + p.channels, *const miss = hit + p.channels;
  E all_misses = 0;
  for (int64_t c = 0; c < p.channels; ++c) all_misses += miss[c];
  for (int64_t v = begin; v < end; v += block) {
    const int64_t n = std::min(block, end - v), used = (n + T::width - 1) / T::width;
    const S* const x = static_cast<const S*>(p.x) + v;
    S* const dx = static_cast<S*>(p.dx) + v;
    const E* const grad = p.grad == nullptr ? nullptr : static_cast<const E*>(p.grad) + v;
    read(p.target, p.channels, v, n, target, static_cast<WrongLabel*>(nullptr));
    E* const pull = softmax.shift;  // what the channels of a voxel have in common
    if (!p.penalty.sigmoid) {
      softmax.compute(x, p.channels, p.stride, n);
      E by_power[block] = {}, by_hit[block] = {};
      for (int64_t c = 0; c < p.channels; ++c) {
        const T a_c = T::broadcast(a[c]), b_c = T::broadcast(b[c]), hit_c = T::broadcast(hit[c]);
        for (int64_t i = 0; i < used; ++i) {
          const int64_t at = i * T::width;
          const T t = target_at<T, planes>(target, c, i);
          const T value = T::load(softmax.powers + c * block + at);
          T::fma(T::fma(b_c, t, a_c), value, T::load(by_power + at)).store(by_power + at);
          T::fma(hit_c, t, T::load(by_hit + at)).store(by_hit + at);
        }
      }
      for (int64_t i = 0; i < used; ++i) {
        const int64_t at = i * T::width;
        const T share = T::broadcast(1) / T::load(softmax.sum + at);
        share.store(softmax.sum + at);
        const T penalties = T::load(by_hit + at) + T::broadcast(all_misses);
        (penalties - T::load(by_power + at) * share).store(pull + at);
      }
    }
    for (int64_t c = 0; c < p.channels; ++c) {
      const T a_c = T::broadcast(a[c]), b_c = T::broadcast(b[c]);
      const T hit_c = T::broadcast(hit[c]), miss_c = T::broadcast(miss[c]);
      for (int64_t i = 0; i < used; ++i) {
        const int64_t at = i * T::width;
        const T t = target_at<T, planes>(target, c, i);
        const T by_share = T::fma(b_c, t, a_c);
        T d;
        if (p.penalty.sigmoid) {
          prefetch(x + c * p.stride + at);
          const Logistic<T> logistic(load_voxels<T>(x + c * p.stride, i, n));
          d = logistic.p * logistic.q * by_share;
          d = T::fma(hit_c * t, logistic.hit_slope(gamma), d);
          d = T::fma(miss_c * (T::broadcast(1) - t), logistic.miss_slope(gamma), d);
        } else {
          const T share = T::load(softmax.powers + c * block + at) * T::load(softmax.sum + at);
          d = share * (by_share + T::load(pull + at)) - T::fma(hit_c, t, miss_c);
        }
        if (grad != nullptr) d = d * load_voxels<T>(grad, i, n);
        d = T::select(counted<T>(target, i), d, T::zero());
        store_voxels(d, dx + c * p.stride, i, n, p.stream);
      }
    }
  }
  if (p.stream) VecBytes::stream_end();
}

#define VOLNET_DEFINE(DTYPE, T, S)                                                                  \
  void sums_##DTYPE(const Sums& p, int64_t begin, int64_t end, void* scratch) {                     \
    (p.target.planes ? sums_of<T, S, true> : sums_of<T, S, false>)(p, begin, end, scratch);         \
  }                                                                                                 \
  void voxels_##DTYPE(const Voxels& p, int64_t begin, int64_t end, void* scratch) {                 \
    (p.target.planes ? voxels_of<T, S, true> : voxels_of<T, S, false>)(p, begin, end, scratch);     \
  }                                                                                                 \
  void backward_##DTYPE(const Backward& p, int64_t begin, int64_t end, void* scratch) {             \
    (p.target.planes ? backward_of<T, S, true> : backward_of<T, S, false>)(p, begin, end, scratch); \
  }
VOLNET_DEFINE(f32, Vec, float)
VOLNET_DEFINE(bf16, Vec, bfloat16)

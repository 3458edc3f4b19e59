// Included inside volnet::roi_pool3d::VOLNET_ISA.

// Lanes where v is larger than best; NaN is larger than all numbers.
template <class V>
static inline auto beats(V v, V best) {
  return V::either(V::greater(v, best), V::both(V::is_nan(v), V::equal(best, best)));
}

// Whether v at tap t comes before best at best_t: the larger, or the same from an earlier tap. Without
// branches: which of two voxels is larger cannot be predicted.
template <class A>
static inline bool comes_first(A v, int32_t t, A best, int32_t best_t) {
  const bool v_nan = v != v, best_nan = best != best;
  const bool larger = (v > best) | (v_nan & !best_nan), same = (v == best) | (v_nan & best_nan);
  return larger | (same & (t < best_t));
}

template <class V, bool full, class T>
static inline V load(const T* p, int64_t n) {
  if constexpr (full) {
    return V::load(p);
  } else {
    return V::load(p, n);
  }
}

// The largest of plane[taps[t] + lane] over the taps t, and the first t that has it, for n lanes. The value
// first and then its place, because a chain of comparisons that carries both is several times as long.
template <class V, bool full, class T, class A = compute_t<T>>
static inline void gather(const T* plane, const int64_t* taps, int64_t count, int64_t n, V lowest, A* largest,
                          int32_t* which) {
  V best = lowest;
  auto nan = V::is_nan(lowest);
  for (int64_t t = 0; t < count; ++t) {
    const V v = load<V, full>(plane + taps[t], n);
    best = V::max(v, best);  // the second argument where v is NaN
    nan = V::either(nan, V::is_nan(v));
  }
  best = V::select(nan, V::broadcast(std::numeric_limits<A>::quiet_NaN()), best);  // equals nothing below
  VecInt best_t = VecInt::broadcast(0);
  for (int64_t t = count - 1; t >= 0; --t) {
    const V v = load<V, full>(plane + taps[t], n);
    const auto here = V::either(V::both(nan, V::is_nan(v)), V::equal(v, best));
    best_t = VecInt::select(here, VecInt::broadcast(static_cast<int32_t>(t)), best_t);
  }
  best.store(largest);
  best_t.store(which);
}

template <class V, class T, class A = compute_t<T>>
static inline void gather_row(const T* plane, const int64_t* taps, int64_t count, int64_t length, A* largest,
                              int32_t* which) {
  const V lowest = V::broadcast(-std::numeric_limits<A>::infinity());
  int64_t j = 0;
  for (; j + V::width <= length; j += V::width) {
    gather<V, true>(plane + j, taps, count, V::width, lowest, largest + j, which + j);
  }
  if (j < length) gather<V, false>(plane + j, taps, count, length - j, lowest, largest + j, which + j);
}

template <class V, class T>
static inline void forward(const Forward<T>& f, int64_t pd) {
  using A = compute_t<T>;
  const Sizes& s = f.sizes;
  const Range bin_d = f.region.d[pd], w_all = f.region.w_all;
  for (int64_t ph = 0; ph < s.ph; ++ph) {
    const Range bin_h = f.region.h[ph];
    int64_t* taps = f.taps + ph * f.most_taps;
    int64_t count = 0;
    for (int64_t d = bin_d.begin; d < bin_d.end; ++d) {
      for (int64_t h = bin_h.begin; h < bin_h.end; ++h) {
        taps[count++] = ((d * s.h + h) * s.w + w_all.begin) * s.inner;
      }
    }
    f.tap_counts[ph] = count;
  }

  for (int64_t plane = 0; plane < s.planes; ++plane) {
    const T* x = f.image + plane * s.d * s.h * s.w * s.inner;
    T* y = f.y + (plane * s.pd + pd) * s.ph * s.pw * s.inner;
    int64_t* argmax = f.argmax + (plane * s.pd + pd) * s.ph * s.pw * s.inner;
    for (int64_t ph = 0; ph < s.ph; ++ph) {
      const int64_t* taps = f.taps + ph * f.most_taps;
      const int64_t count = f.tap_counts[ph];
      if (count > 0) gather_row<V>(x, taps, count, (w_all.end - w_all.begin) * s.inner, f.largest, f.which);
      for (int64_t pw = 0; pw < s.pw; ++pw, y += s.inner, argmax += s.inner) {
        const Range bin = f.region.w[pw];
        if (count == 0 || bin.begin == bin.end) {
          std::fill(y, y + s.inner, from_float<T>(A(0)));
          std::fill(argmax, argmax + s.inner, int64_t{-1});
          continue;
        }
        const int64_t offset = (bin.begin - w_all.begin) * s.inner, width = bin.end - bin.begin;
        if (s.inner == 1) {
          const A* v = f.largest + offset;
          const int32_t* t = f.which + offset;
          A best = v[0];
          int32_t best_t = t[0];
          int64_t best_w = 0;
          for (int64_t i = 1; i < width; ++i) {
            const bool better = comes_first(v[i], t[i], best, best_t);
            best = better ? v[i] : best;
            best_t = better ? t[i] : best_t;
            best_w = better ? i : best_w;
          }
          *y = from_float<T>(best);
          *argmax = taps[best_t] - w_all.begin + bin.begin + best_w;
          continue;
        }
        for (int64_t c = 0; c < s.inner; c += V::width) {
          const A* v = f.largest + offset + c;
          const int32_t* t = f.which + offset + c;
          V best = V::load(v);
          VecInt best_t = VecInt::load(t), best_w = VecInt::broadcast(0);
          for (int64_t i = 1; i < width; ++i) {
            const V vi = V::load(v + i * s.inner);
            const VecInt ti = VecInt::load(t + i * s.inner);
            const auto same = V::either(V::equal(vi, best), V::both(V::is_nan(vi), V::is_nan(best)));
            const auto better = V::either(beats(vi, best), V::both(same, VecInt::less(ti, best_t)));
            best = V::select(better, vi, best);
            best_t = VecInt::select(better, ti, best_t);
            best_w = VecInt::select(better, VecInt::broadcast(static_cast<int32_t>(i)), best_w);
          }
          const int64_t n = std::min(V::width, s.inner - c);
          if (n == V::width) {
            best.store(y + c);
          } else {
            best.store(y + c, n);
          }
          int32_t lane_t[V::width], lane_w[V::width];
          best_t.store(lane_t);
          best_w.store(lane_w);
          for (int64_t lane = 0; lane < n; ++lane) {
            argmax[c + lane] = taps[lane_t[lane]] / s.inner - w_all.begin + bin.begin + lane_w[lane];
          }
        }
      }
    }
  }
}

// Included inside volnet::roi_align3d::VOLNET_ISA.

// row[j] = sum of weight * image[offset + j] over the taps, for j < length.
template <class V, class T, class A = compute_t<T>>
static inline void gather_row(const T* plane, const Tap<A>* taps, int64_t count, int64_t length, A* row) {
  constexpr int64_t width = V::width;
  int64_t j = 0;
  for (; j + 4 * width <= length; j += 4 * width) {
    V s0 = V::zero(), s1 = V::zero(), s2 = V::zero(), s3 = V::zero();
    for (int64_t t = 0; t < count; ++t) {
      const T* x = plane + taps[t].offset + j;
      const V weight = V::broadcast(taps[t].weight);
      s0 = V::fma(weight, V::load(x), s0);
      s1 = V::fma(weight, V::load(x + width), s1);
      s2 = V::fma(weight, V::load(x + 2 * width), s2);
      s3 = V::fma(weight, V::load(x + 3 * width), s3);
    }
    s0.store(row + j);
    s1.store(row + j + width);
    s2.store(row + j + 2 * width);
    s3.store(row + j + 3 * width);
  }
  for (; j + width <= length; j += width) {
    V sum = V::zero();
    for (int64_t t = 0; t < count; ++t) {
      sum = V::fma(V::broadcast(taps[t].weight), V::load(plane + taps[t].offset + j), sum);
    }
    sum.store(row + j);
  }
  if (j < length) {
    V sum = V::zero();
    for (int64_t t = 0; t < count; ++t) {
      sum = V::fma(V::broadcast(taps[t].weight), V::load(plane + taps[t].offset + j, length - j), sum);
    }
    sum.store(row + j);
  }
}

template <class V, class T>
static inline void forward(const Forward<T>& f, int64_t pd) {
  using A = compute_t<T>;
  const Sizes& s = f.sizes;
  const Region<A>& region = f.region;
  const Bin<A>& bin_d = region.d.bin[pd];
  for (int64_t ph = 0; ph < s.ph; ++ph) {
    const Bin<A>& bin_h = region.h.bin[ph];
    Tap<A>* taps = f.taps + ph * f.most_taps;
    int64_t count = 0;
    for (int64_t i = 0; i < bin_d.count; ++i) {
      if (bin_d.weights[i] == A(0)) continue;
      for (int64_t j = 0; j < bin_h.count; ++j) {
        if (bin_h.weights[j] == A(0)) continue;
        const int64_t voxel = ((bin_d.first + i) * s.h + bin_h.first + j) * s.w + region.w.begin;
        taps[count++] = {voxel * s.inner, bin_d.weights[i] * bin_h.weights[j]};
      }
    }
    f.tap_counts[ph] = count;
  }

  const int64_t length = (region.w.end - region.w.begin) * s.inner;
  for (int64_t plane = 0; plane < s.planes; ++plane) {
    const T* x = f.image + plane * s.d * s.h * s.w * s.inner;
    T* y = f.y + (plane * s.pd + pd) * s.ph * s.pw * s.inner;
    for (int64_t ph = 0; ph < s.ph; ++ph) {
      gather_row<V>(x, f.taps + ph * f.most_taps, f.tap_counts[ph], length, f.row);
      for (int64_t pw = 0; pw < s.pw; ++pw, y += s.inner) {
        const Bin<A>& bin = region.w.bin[pw];
        const A* row = f.row + (bin.first - region.w.begin) * s.inner;
        if (s.inner == 1) {
          A sum = 0;
          for (int64_t i = 0; i < bin.count; ++i) sum += bin.weights[i] * row[i];
          *y = from_float<T>(sum);
          continue;
        }
        for (int64_t c = 0; c < s.inner; c += V::width) {
          V sum = V::zero();
          for (int64_t i = 0; i < bin.count; ++i) {
            sum = V::fma(V::broadcast(bin.weights[i]), V::load(row + i * s.inner + c), sum);
          }
          if (c + V::width <= s.inner) {
            sum.store(y + c);
          } else {
            sum.store(y + c, s.inner - c);
          }
        }
      }
    }
  }
}

// y[j] += weight * x[j] for j < n.
template <class V, class T, class A = compute_t<T>>
static inline void add_scaled(A* y, const T* x, A weight, int64_t n) {
  if (n == 1) {  // one channel
    *y += weight * to_float(*x);
    return;
  }
  const V w = V::broadcast(weight);
  int64_t j = 0;
  for (; j + V::width <= n; j += V::width) V::fma(w, V::load(x + j), V::load(y + j)).store(y + j);
  if (j < n) V::fma(w, V::load(x + j, n - j), V::load(y + j, n - j)).store(y + j, n - j);
}

// The weight with which a bin reads a voxel.
template <class A>
static inline A weight_of(const Bin<A>& bin, int64_t voxel) {
  const int64_t i = voxel - bin.first;
  return i >= 0 && i < bin.count ? bin.weights[i] : A(0);
}

// Adds the gradient of one region at depth d to dx [H, W, inner], one axis after the other.
template <class V, class T, class A = compute_t<T>>
static inline void add_region(const Backward<T>& b, int64_t k, int64_t plane, int64_t d, A* dx) {
  const Sizes& s = b.sizes;
  const Region<A>& region = b.regions[k];
  const int64_t bins = s.ph * s.pw * s.inner;
  std::fill(b.bins, b.bins + bins, A(0));
  bool any = false;
  for (int64_t pd = 0; pd < s.pd; ++pd) {
    const A weight = weight_of(region.d.bin[pd], d);
    if (weight == A(0)) continue;
    any = true;
    add_scaled<V>(b.bins, b.grad + ((k * s.planes + plane) * s.pd + pd) * bins, weight, bins);
  }
  if (!any) return;

  const int64_t length = (region.w.end - region.w.begin) * s.inner;
  std::fill(b.wide, b.wide + s.ph * length, A(0));
  for (int64_t ph = 0; ph < s.ph; ++ph) {
    for (int64_t pw = 0; pw < s.pw; ++pw) {
      const Bin<A>& bin = region.w.bin[pw];
      const A* from = b.bins + (ph * s.pw + pw) * s.inner;
      A* to = b.wide + ph * length + (bin.first - region.w.begin) * s.inner;
      for (int64_t i = 0; i < bin.count; ++i, to += s.inner) {
        add_scaled<V>(to, from, bin.weights[i], s.inner);
      }
    }
  }
  for (int64_t h = region.h.begin; h < region.h.end; ++h) {
    for (int64_t ph = 0; ph < s.ph; ++ph) {
      const A weight = weight_of(region.h.bin[ph], h);
      if (weight == A(0)) continue;
      add_scaled<V>(dx + (h * s.w + region.w.begin) * s.inner, b.wide + ph * length, weight, length);
    }
  }
}

template <class V, class T>
static inline void backward(const Backward<T>& b, int64_t n, int64_t plane, int64_t d) {
  using A = compute_t<T>;
  const Sizes& s = b.sizes;
  const int64_t size = s.h * s.w * s.inner;
  T* dx = b.dx + ((n * s.planes + plane) * s.d + d) * size;
  A* sums = nullptr;
  if constexpr (sizeof(T) == sizeof(A)) {
    sums = dx;
  } else {
    sums = b.sums;
  }
  std::fill(sums, sums + size, A(0));
  for (int64_t i = 0; i < b.count; ++i) {
    const Region<A>& region = b.regions[b.rows[i]];
    if (d >= region.d.begin && d < region.d.end) add_region<V>(b, b.rows[i], plane, d, sums);
  }
  if constexpr (sizeof(T) != sizeof(A)) {
    for (int64_t j = 0; j < size; j += V::width) {
      if (j + V::width <= size) {
        V::load(sums + j).store(dx + j);
      } else {
        V::load(sums + j).store(dx + j, size - j);
      }
    }
  }
}

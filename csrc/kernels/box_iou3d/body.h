// Included inside volnet::box_iou3d::VOLNET_ISA.

// What m boxes of b, from j on, have in common with one box of a.
template <class V>
struct Overlap {
  V raw[3], side[3];  // before and after max(x, 0)
  V inter, joint;
};

template <class V, class A>
static inline Overlap<V> overlap(const A* a, V volume_a, const A* b, int64_t m_padded) {
  Overlap<V> o;
  for (int x = 0; x < 3; ++x) {
    const V lo = V::max(V::broadcast(a[x]), V::load(b + x * m_padded));
    const V hi = V::min(V::broadcast(a[3 + x]), V::load(b + (3 + x) * m_padded));
    o.raw[x] = hi - lo;
    o.side[x] = V::max(o.raw[x], V::zero());
  }
  o.inter = o.side[0] * o.side[1] * o.side[2];
  o.joint = volume_a + V::load(b + 6 * m_padded) - o.inter;
  return o;
}

template <class A>
static inline A volume(const A* a) {
  return (a[3] - a[0]) * (a[4] - a[1]) * (a[5] - a[2]);
}

template <class V, class T>
static inline void forward(const Params& p, int64_t begin, int64_t end) {
  using A = compute_t<T>;
  for (int64_t i = begin; i < end; ++i) {
    const A* a = static_cast<const A*>(p.a) + 6 * i;
    const A* b = static_cast<const A*>(p.b);
    const V volume_a = V::broadcast(volume(a));
    T* y = static_cast<T*>(p.y) + i * p.m;
    for (int64_t j = 0; j < p.m; j += V::width) {
      const Overlap<V> o = overlap<V>(a, volume_a, b + j, p.m_padded);
      V iou = V::zero();
      if (V::any_greater(o.inter, V::zero())) {  // most pairs of a scene have nothing in common
        iou = V::select(V::equal(o.joint, V::zero()), V::zero(), o.inter / o.joint);
      }
      if (j + V::width <= p.m) {
        iou.store(y + j);
      } else {
        iou.store(y + j, p.m - j);
      }
    }
  }
}

// With I = inter and U = volume_a + volume_b - I:  dy = (U + I) / U^2 dI - I / U^2 (dvolume_a + dvolume_b).
template <class V, class T>
static inline void backward(const BackwardParams& p, int64_t begin, int64_t end) {
  using A = compute_t<T>;
  const V zero = V::zero(), one = V::broadcast(A(1)), half = V::broadcast(A(0.5));
  for (int64_t i = begin; i < end; ++i) {
    const A* a = static_cast<const A*>(p.a) + 6 * i;
    const T* grad_y = static_cast<const T*>(p.grad) + i * p.m;
    T* grad_a = static_cast<T*>(p.grad_a) + 6 * i;
    const V volume_a = V::broadcast(volume(a));
    V sum_lo[3] = {zero, zero, zero}, sum_hi[3] = {zero, zero, zero}, sum_volume = zero;
    for (int64_t j = 0; j < p.m; j += V::width) {
      const A* b = static_cast<const A*>(p.b) + j;
      const Overlap<V> o = overlap<V>(a, volume_a, b, p.m_padded);
      const V grad = j + V::width <= p.m ? V::load(grad_y + j) : V::load(grad_y + j, p.m - j);
      const V scale = V::select(V::equal(o.joint, zero), zero, grad / o.joint);
      const V iou = V::select(V::equal(o.joint, zero), zero, o.inter / o.joint);
      const V by_inter = scale * (one + iou);
      sum_volume = sum_volume - scale * iou;
      for (int x = 0; x < 3; ++x) {
        const V others = o.side[(x + 1) % 3] * o.side[(x + 2) % 3];
        const V by_side = V::select(V::greater(zero, o.raw[x]), zero, by_inter * others);
        const V a_lo = V::broadcast(a[x]), a_hi = V::broadcast(a[3 + x]);
        const V b_lo = V::load(b + x * p.m_padded), b_hi = V::load(b + (3 + x) * p.m_padded);
        const V share_lo =
            V::select(V::greater(a_lo, b_lo), one, V::select(V::equal(a_lo, b_lo), half, zero));
        const V share_hi =
            V::select(V::greater(b_hi, a_hi), one, V::select(V::equal(a_hi, b_hi), half, zero));
        sum_lo[x] = sum_lo[x] - by_side * share_lo;
        sum_hi[x] = sum_hi[x] + by_side * share_hi;
      }
    }
    for (int x = 0; x < 3; ++x) {
      const int y = (x + 1) % 3, z = (x + 2) % 3;
      const A by_volume = sum_volume.sum() * ((a[3 + y] - a[y]) * (a[3 + z] - a[z]));
      grad_a[x] = from_float<T>(sum_lo[x].sum() - by_volume);
      grad_a[3 + x] = from_float<T>(sum_hi[x].sum() + by_volume);
    }
  }
}

// The kernels, over Vec. Included inside the level's namespace, once.

constexpr int64_t chunk = 64;  // places that are worked out together

// int64 where a voxel is loaded by itself, int32 where a vector of them is gathered.
using Offset = std::conditional_t<Vec::width == 1, int64_t, int32_t>;

// The taps of places on one axis; offsets in elements of x.
template <int taps>
struct AxisTaps {
  alignas(64) Offset offset[taps][chunk];
  alignas(64) float weight[taps][chunk];
};

inline Offset edge(Offset i, Offset size) {
  i = i < size - 1 ? i : size - 1;
  return i > 0 ? i : 0;
}

inline Offset mirror(Offset i, Offset size) {
  i = i < 0 ? -i : i;
  i = i < size ? i : 2 * (size - 1) - i;
  return edge(i < 0 ? -i : i, size);
}

// start + step * i for i < chunk. `pairs`: both taps of linear interpolation are neighbours, within the
// volume.
template <int taps, bool pairs>
inline void place(double start, double step, int64_t size, int64_t stride_of_axis, AxisTaps<taps>& axis,
                  int32_t* inside) {
  // A whole voxel as the origin leaves float32 the precision that the places of a chunk need. One that is far
  // outside may be any that is outside.
  const double extent = static_cast<double>(size);
  const double origin = std::floor(
      std::clamp(start, -2.0 * chunk * (1 + std::abs(step)), extent + 2.0 * chunk * (1 + std::abs(step))));
  const auto from = static_cast<float>(start - origin), along = static_cast<float>(step);
  // A grid that ends with the volume should not lose its last plane to rounding.
  constexpr double tolerance = 1e-5;
  const auto low = static_cast<float>(-0.5 - tolerance - origin);
  const auto high = static_cast<float>(extent - 0.5 + tolerance - origin);
  const auto base = static_cast<Offset>(origin), count = static_cast<Offset>(size);
  const auto stride = static_cast<Offset>(stride_of_axis);
  for (int64_t i = 0; i < chunk; ++i) {
    float at = from + along * static_cast<float>(static_cast<int32_t>(i));
    inside[i] &= static_cast<int32_t>(at >= low) & static_cast<int32_t>(at < high);
    at = at > low ? at : low;  // what is outside is not kept: any voxel will do
    at = at < high ? at : high;
    const float floor = std::floor(taps == 1 ? at + 0.5f : at), t = at - floor, s = 1 - t;
    const Offset lower = static_cast<Offset>(static_cast<int32_t>(floor)) + base;
    if constexpr (taps == 1) {
      axis.offset[0][i] = edge(lower, count) * stride;
      axis.weight[0][i] = 1;
    } else if constexpr (pairs) {
      axis.offset[0][i] = edge(lower, count - 1) * stride;
      axis.weight[0][i] = lower < 0 ? 1 : (lower > count - 2 ? 0 : s);
      axis.weight[1][i] = lower < 0 ? 0 : (lower > count - 2 ? 1 : t);
    } else if constexpr (taps == 2) {
      axis.offset[0][i] = edge(lower, count) * stride;
      axis.offset[1][i] = edge(lower + 1, count) * stride;
      axis.weight[0][i] = s;
      axis.weight[1][i] = t;
    } else {
      for (int k = 0; k < 4; ++k)
        axis.offset[k][i] = mirror(lower - 1 + static_cast<Offset>(k), count) * stride;
      axis.weight[0][i] = s * s * s / 6;
      axis.weight[1][i] = 2.0f / 3 - t * t * (2 - t) / 2;
      axis.weight[2][i] = 2.0f / 3 - s * s * (2 - s) / 2;
      axis.weight[3][i] = t * t * t / 6;
    }
  }
}

// The sum over w of the taps of Vec::width places, at the rows of x that begin at the offsets d + h.
template <int taps, bool pairs, class S, class I>
inline Vec line(const S* x, const I* d, const I* h, const AxisTaps<taps>& w, int64_t i,
                [[maybe_unused]] int32_t last) {
  Vec sum = Vec::zero();
  if constexpr (Vec::width == 1) {
    for (int c = 0; c < taps; ++c) {
      sum = Vec::fma(Vec::load(x + *d + *h + w.offset[c][i]), Vec::load(w.weight[c] + i), sum);
    }
  } else {
    const VecInt row = VecInt::load(d) + VecInt::load(h);
    if constexpr (pairs) {
      const auto [first, second] = (row + VecInt::load(w.offset[0] + i)).gather_pairs(x);
      sum = Vec::fma(second, Vec::load(w.weight[1] + i), first * Vec::load(w.weight[0] + i));
    } else {
#pragma GCC unroll 4
      for (int c = 0; c < taps; ++c) {
        const VecInt offset = row + VecInt::load(w.offset[c] + i);
        Vec value;
        if constexpr (sizeof(S) == 2) {
          value = offset.gather(x, last);
        } else {
          value = offset.gather(x);
        }
        sum = Vec::fma(value, Vec::load(w.weight[c] + i), sum);
      }
    }
  }
  return sum;
}

template <int taps, class S, class R>
inline void rows(const Params& p, int64_t row_begin, int64_t row_end) {
  constexpr bool pairs = taps == 2 && sizeof(S) == 2 && Vec::width > 1;
  AxisTaps<taps> d, h, w;
  alignas(64) int32_t inside[chunk];
  const S* x = static_cast<const S*>(p.x);
  const auto last = static_cast<int32_t>(Vec::width == 1 ? 0 : p.d * p.h * p.w - 1);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const auto od = static_cast<double>(row / p.out_h), oh = static_cast<double>(row % p.out_h);
    for (int64_t first = 0; first < p.out_w; first += chunk) {
      double start[3];
      for (int axis = 0; axis < 3; ++axis) {
        const double* m = p.map[axis];
        start[axis] = m[0] * od + m[1] * oh + m[2] * static_cast<double>(first) + m[3];
      }
      std::fill_n(inside, chunk, 1);
      place<taps, false>(start[0], p.map[0][2], p.d, p.h * p.w, d, inside);
      place<taps, false>(start[1], p.map[1][2], p.h, p.w, h, inside);
      place<taps, pairs>(start[2], p.map[2][2], p.w, 1, w, inside);
      R* y = static_cast<R*>(p.y) + row * p.out_w + first;
      const int64_t count = std::min(chunk, p.out_w - first);
      for (int64_t i = 0; i < count; i += Vec::width) {
        Vec sum = Vec::zero();
#pragma GCC unroll 2
        for (int a = 0; a < taps; ++a) {
          Vec plane = Vec::zero();
#pragma GCC unroll 2
          for (int b = 0; b < taps; ++b) {
            const Vec sum_w = line<taps, pairs>(x, d.offset[a] + i, h.offset[b] + i, w, i, last);
            plane = Vec::fma(sum_w, Vec::load(h.weight[b] + i), plane);
          }
          sum = Vec::fma(plane, Vec::load(d.weight[a] + i), sum);
        }
        if (const int64_t n = count - i; n < Vec::width) {
          sum.store(y + i, n);
        } else {
          sum.store(y + i);
        }
      }
      int32_t all = 1;
      for (int64_t i = 0; i < count; ++i) all &= inside[i];
      for (int64_t i = 0; all == 0 && i < count; ++i) {
        if (inside[i] == 0) y[i] = static_cast<R>(p.pad_value);
      }
    }
  }
}

template <class S, class R>
inline void run(const Params& p, int64_t row_begin, int64_t row_end) {
  if (p.taps == 1) {
    rows<1, S, R>(p, row_begin, row_end);
  } else if (p.taps == 2) {
    rows<2, S, R>(p, row_begin, row_end);
  } else {
    rows<4, S, R>(p, row_begin, row_end);
  }
}

void i16_i16(const Params& p, int64_t begin, int64_t end) { run<int16_t, int16_t>(p, begin, end); }
void i16_f32(const Params& p, int64_t begin, int64_t end) { run<int16_t, float>(p, begin, end); }
void f32_i16(const Params& p, int64_t begin, int64_t end) { run<float, int16_t>(p, begin, end); }
void f32_f32(const Params& p, int64_t begin, int64_t end) { run<float, float>(p, begin, end); }

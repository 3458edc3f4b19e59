// The kernels, over a vector V: Vec, or VecDouble. Included inside the level's namespace, once.

constexpr int64_t chunk = 64;  // places that are worked out together

// Where places lie on one axis, and how fast a corner's weight changes with the grid's number.
template <class A>
struct AxisPlaces {
  alignas(64) int32_t lower[chunk], upper[chunk];  // voxels
  alignas(64) A lower_weight[chunk], upper_weight[chunk];
  alignas(64) A lower_slope[chunk], upper_slope[chunk];
};

// Without branches, so that the compiler makes vectors of it.
template <Padding padding, bool nearest, class A>
inline void place_numbers(const A* numbers, bool align_corners, int32_t size, AxisPlaces<A>& axis) {
  const A extent = static_cast<A>(size), last = extent - 1;
  // From the place -1, `least`, to the place 1; mirrors stand there.
  const A span = align_corners ? last : extent, least = align_corners ? A{0} : A{-0.5}, half = least * 2;
  for (int i = 0; i < chunk; ++i) {
    const A number = numbers[i];
    A at = ((number + 1) * span + half) / 2;
    A slope = span / 2;
    if constexpr (padding == Padding::reflection) {
      const A from = at - least, distance = std::abs(from);
      const A flips = std::floor(distance / span), extra = distance - flips * span;
      const bool even = flips - 2 * std::floor(flips / 2) == 0;
      at = span > 0 ? (even ? extra : span - extra) + least : 0;
      slope = (from < 0) == even ? -slope : slope;
    }
    if constexpr (padding != Padding::zeros) {
      // At the border itself the slope is zero already, as torch has it; no number counts as the last voxel.
      slope = at <= 0 ? 0 : slope;
      slope = at < last ? slope : 0;
      at = at < last ? at : last;
      at = at <= 0 ? 0 : at;
    }
    // Two voxels outside nothing counts; neither does what is no number.
    at = at > -2 ? at : A{-2};
    at = at < extent + 1 ? at : extent + 1;
    const A floor = nearest ? std::nearbyint(at) : std::floor(at);
    const auto lower = static_cast<int32_t>(floor);
    const bool has_lower = static_cast<uint32_t>(lower) < static_cast<uint32_t>(size);
    const bool has_upper = static_cast<uint32_t>(lower + 1) < static_cast<uint32_t>(size);
    const A part = nearest ? 0 : at - floor;
    axis.lower[i] = has_lower ? lower : 0;
    axis.upper[i] = has_upper ? lower + 1 : 0;
    axis.lower_weight[i] = has_lower ? 1 - part : 0;
    axis.upper_weight[i] = has_upper ? part : 0;
    axis.lower_slope[i] = has_lower ? -slope : 0;
    axis.upper_slope[i] = has_upper ? slope : 0;
  }
}

template <class A, class T>
inline void place(const Params& p, const T* grid, int64_t count, int64_t size, AxisPlaces<A>& axis) {
  alignas(64) A numbers[chunk] = {};
  for (int64_t i = 0; i < count; ++i) numbers[i] = to_float(grid[3 * i]);
  const auto voxels = static_cast<int32_t>(size);
  if (p.padding == Padding::zeros) {
    p.nearest ? place_numbers<Padding::zeros, true>(numbers, p.align_corners, voxels, axis)
              : place_numbers<Padding::zeros, false>(numbers, p.align_corners, voxels, axis);
  } else if (p.padding == Padding::border) {
    p.nearest ? place_numbers<Padding::border, true>(numbers, p.align_corners, voxels, axis)
              : place_numbers<Padding::border, false>(numbers, p.align_corners, voxels, axis);
  } else {
    p.nearest ? place_numbers<Padding::reflection, true>(numbers, p.align_corners, voxels, axis)
              : place_numbers<Padding::reflection, false>(numbers, p.align_corners, voxels, axis);
  }
}

template <class A>
struct Places {
  AxisPlaces<A> x, y, z;
};

template <class A, class T>
inline void place(const Params& p, const T* grid, int64_t count, Places<A>& places) {
  place(p, grid, count, p.w, places.x);
  place(p, grid + 1, count, p.h, places.y);
  place(p, grid + 2, count, p.d, places.z);
}

// The corners of a place that count.
template <class A>
struct Corners {
  int count = 0;
  int64_t voxel[8];
  A weight[8];
};

template <class A>
inline Corners<A> corners_of(const Params& p, const Places<A>& places, int64_t i) {
  Corners<A> corners;
  const A wx[2] = {places.x.lower_weight[i], places.x.upper_weight[i]};
  const A wy[2] = {places.y.lower_weight[i], places.y.upper_weight[i]};
  const A wz[2] = {places.z.lower_weight[i], places.z.upper_weight[i]};
  if (p.nearest) {
    corners.count = wx[0] * wy[0] * wz[0] != 0;
    corners.voxel[0] = (places.z.lower[i] * p.h + places.y.lower[i]) * p.w + places.x.lower[i];
    corners.weight[0] = 1;
    return corners;
  }
  if (wx[0] * wx[1] * wy[0] * wy[1] * wz[0] * wz[1] != 0) {  // most places: all eight
    const int64_t row = (places.z.lower[i] * p.h + places.y.lower[i]) * p.w + places.x.lower[i];
#pragma GCC unroll 8
    for (int k = 0; k < 8; ++k) {
      corners.voxel[k] = row + (k & 4 ? p.h * p.w : 0) + (k & 2 ? p.w : 0) + (k & 1);
      corners.weight[k] = wx[k & 1] * wy[k >> 1 & 1] * wz[k >> 2];
    }
    corners.count = 8;
    return corners;
  }
  for (int k = 0; k < 8; ++k) {
    const A weight = wx[k & 1] * wy[k >> 1 & 1] * wz[k >> 2];
    if (weight == 0) continue;
    const int64_t z = k & 4 ? places.z.upper[i] : places.z.lower[i];
    const int64_t y = k & 2 ? places.y.upper[i] : places.y.lower[i];
    corners.voxel[corners.count] = (z * p.h + y) * p.w + (k & 1 ? places.x.upper[i] : places.x.lower[i]);
    corners.weight[corners.count++] = weight;
  }
  return corners;
}

template <class V, class T>
inline V load_up_to(const T* p, int64_t n) {
  return n >= V::width ? V::load(p) : V::load(p, n);
}

template <class V, class T>
inline void store_up_to(V v, T* p, int64_t n) {
  if (n >= V::width) {
    v.store(p);
  } else {
    v.store(p, n);
  }
}

// y[c] = the sum over corners for all channels; n: corners, 0 where they are not eight.
template <int n, class V, class T>
inline void sum_corners(const T* x, const Corners<typename V::element>& corners, int64_t channels, T* y) {
  const int count = n == 0 ? corners.count : n;
  const T* from[8];
  V weight[8];
#pragma GCC unroll 8
  for (int k = 0; k < count; ++k) {
    from[k] = x + corners.voxel[k] * channels;
    weight[k] = V::broadcast(corners.weight[k]);
  }
  for (int64_t c = 0; c < channels; c += V::width) {
    V sum = V::zero();
    if (channels - c >= V::width) {
#pragma GCC unroll 8
      for (int k = 0; k < count; ++k) sum = V::fma(V::load(from[k] + c), weight[k], sum);
      sum.store(y + c);
    } else {
      const int64_t left = channels - c;
      for (int k = 0; k < count; ++k) sum = V::fma(V::load(from[k] + c, left), weight[k], sum);
      sum.store(y + c, left);
    }
  }
}

template <class V, class T>
inline void forward(const Params& p, int64_t begin, int64_t end) {
  using A = typename V::element;
  Places<A> places;
  for (int64_t image = begin / p.points; begin < end; ++image) {
    const auto* x = static_cast<const T*>(p.x) + image * p.d * p.h * p.w * p.channels;
    const int64_t stop = std::min(end, (image + 1) * p.points);
    for (; begin < stop; begin += chunk) {
      const int64_t count = std::min(chunk, stop - begin);
      place(p, static_cast<const T*>(p.grid) + begin * 3, count, places);
      T* y = static_cast<T*>(p.result) + begin * p.channels;
      for (int64_t i = 0; i < count; ++i, y += p.channels) {
        const Corners<A> corners = corners_of(p, places, i);
        if (corners.count == 8) {
          sum_corners<8, V>(x, corners, p.channels, y);
        } else {
          sum_corners<0, V>(x, corners, p.channels, y);
        }
      }
    }
    begin = stop;
  }
}

// The voxel of each corner, in a channel.
inline void corner_voxels(const Params& p, const Places<float>& places, int32_t (&voxel)[8][chunk]) {
  const auto height = static_cast<int32_t>(p.h), width = static_cast<int32_t>(p.w);
  for (int k = 0; k < 8; ++k) {
    const auto* xs = k & 1 ? places.x.upper : places.x.lower;
    const auto* ys = k & 2 ? places.y.upper : places.y.lower;
    const auto* zs = k & 4 ? places.z.upper : places.z.lower;
    for (int i = 0; i < chunk; ++i) voxel[k][i] = (zs[i] * height + ys[i]) * width + xs[i];
  }
}

// Plain layout, float32: places are the lanes.
inline void forward_plain(const Params& p, int64_t begin, int64_t end) {
  Places<float> places;
  alignas(64) int32_t voxel[8][chunk];
  alignas(64) float weight[8][chunk];
  const int64_t voxels = p.d * p.h * p.w;
  for (int64_t image = begin / p.points; begin < end; ++image) {
    const int64_t stop = std::min(end, (image + 1) * p.points);
    for (; begin < stop; begin += chunk) {
      const int64_t count = std::min(chunk, stop - begin);
      place(p, static_cast<const float*>(p.grid) + begin * 3, count, places);
      corner_voxels(p, places, voxel);
      for (int k = 0; k < 8; ++k) {
        const auto* wx = k & 1 ? places.x.upper_weight : places.x.lower_weight;
        const auto* wy = k & 2 ? places.y.upper_weight : places.y.lower_weight;
        const auto* wz = k & 4 ? places.z.upper_weight : places.z.lower_weight;
        for (int i = 0; i < chunk; ++i) weight[k][i] = wx[i] * wy[i] * wz[i];
      }
      for (int64_t c = 0; c < p.channels; ++c) {
        const auto* x = static_cast<const float*>(p.x) + (image * p.channels + c) * voxels;
        float* y =
            static_cast<float*>(p.result) + (image * p.channels + c) * p.points + begin - image * p.points;
        for (int64_t i = 0; i < count; i += Vec::width) {
          Vec sum = Vec::zero();
          for (int k = 0; k < (p.nearest ? 1 : 8); ++k) {
            const Vec factor = Vec::load(weight[k] + i);
            // A corner that does not count may hold anything, infinity too.
            const Vec value =
                Vec::select(Vec::equal(factor, Vec::zero()), Vec::zero(), Vec::gather(x, voxel[k] + i));
            sum = Vec::fma(value, factor, sum);
          }
          store_up_to(sum, y + i, count - i);
        }
      }
    }
    begin = stop;
  }
}

constexpr int64_t few = 4;  // channels

template <class V, class T>
inline void backward_input(const Params& p, const Part& part) {
  using A = typename V::element;
  Places<A> places;
  A* dx = static_cast<A*>(p.result) + part.image * p.d * p.h * p.w * p.channels;
  for (int64_t first = 0; first < p.points; first += chunk) {
    const int64_t count = std::min(chunk, p.points - first), at = part.image * p.points + first;
    const T* grid = static_cast<const T*>(p.grid) + at * 3;
    place(p, grid + 2, count, p.d, places.z);
    bool touched = false;
    for (int64_t i = 0; i < count; ++i) {
      const bool lower = places.z.lower[i] >= part.d_begin && places.z.lower[i] < part.d_end;
      const bool upper = places.z.upper[i] >= part.d_begin && places.z.upper[i] < part.d_end;
      if (!lower) places.z.lower_weight[i] = 0;
      if (!upper) places.z.upper_weight[i] = 0;
      touched = touched || lower || upper;
    }
    if (!touched) continue;
    place(p, grid, count, p.w, places.x);
    place(p, grid + 1, count, p.h, places.y);
    for (int64_t i = 0; i < count; ++i) {
      const Corners<A> corners = corners_of(p, places, i);
      const T* dy = static_cast<const T*>(p.dy) + (at + i) * p.channels;
      if (p.channels <= few) {  // a masked load would wait for the masked store of the place before
        for (int k = 0; k < corners.count; ++k) {
          A* to = dx + corners.voxel[k] * p.channels;
          for (int64_t c = 0; c < p.channels; ++c) to[c] += to_float(dy[c]) * corners.weight[k];
        }
        continue;
      }
      for (int64_t c = part.c_begin; c < part.c_end; c += V::width) {
        const int64_t left = part.c_end - c;
        const V gradient = load_up_to<V>(dy + c, left);
        for (int k = 0; k < corners.count; ++k) {
          A* to = dx + corners.voxel[k] * p.channels + c;
          store_up_to(V::fma(gradient, V::broadcast(corners.weight[k]), load_up_to<V>(to, left)), to, left);
        }
      }
    }
  }
}

// Mode bilinear.
template <class V, class T>
inline void backward_grid(const Params& p, int64_t begin, int64_t end) {
  using A = typename V::element;
  Places<A> places;
  for (int64_t image = begin / p.points; begin < end; ++image) {
    const auto* x = static_cast<const T*>(p.x) + image * p.d * p.h * p.w * p.channels;
    const int64_t stop = std::min(end, (image + 1) * p.points);
    for (; begin < stop; begin += chunk) {
      const int64_t count = std::min(chunk, stop - begin);
      place(p, static_cast<const T*>(p.grid) + begin * 3, count, places);
      for (int64_t i = 0; i < count; ++i) {
        const T* dy = static_cast<const T*>(p.dy) + (begin + i) * p.channels;
        A gx = 0, gy = 0, gz = 0;
        for (int k = 0; k < 8; ++k) {
          const bool ux = k & 1, uy = k & 2, uz = k & 4;
          const A sx = ux ? places.x.upper_slope[i] : places.x.lower_slope[i];
          const A sy = uy ? places.y.upper_slope[i] : places.y.lower_slope[i];
          const A sz = uz ? places.z.upper_slope[i] : places.z.lower_slope[i];
          const A wx = ux ? places.x.upper_weight[i] : places.x.lower_weight[i];
          const A wy = uy ? places.y.upper_weight[i] : places.y.lower_weight[i];
          const A wz = uz ? places.z.upper_weight[i] : places.z.lower_weight[i];
          const A of_x = sx * wy * wz, of_y = wx * sy * wz, of_z = wx * wy * sz;
          if (of_x == 0 && of_y == 0 && of_z == 0) continue;
          const int64_t voxel = (int64_t{uz ? places.z.upper[i] : places.z.lower[i]} * p.h +
                                 (uy ? places.y.upper[i] : places.y.lower[i])) *
                                    p.w +
                                (ux ? places.x.upper[i] : places.x.lower[i]);
          V sum = V::zero();
          for (int64_t c = 0; c < p.channels; c += V::width) {
            const int64_t left = p.channels - c;
            sum = V::fma(load_up_to<V>(x + voxel * p.channels + c, left), load_up_to<V>(dy + c, left), sum);
          }
          const A product = sum.sum();
          gx += product * of_x;
          gy += product * of_y;
          gz += product * of_z;
        }
        T* dgrid = static_cast<T*>(p.result) + (begin + i) * 3;
        dgrid[0] = from_float<T>(gx);
        dgrid[1] = from_float<T>(gy);
        dgrid[2] = from_float<T>(gz);
      }
    }
    begin = stop;
  }
}

// Plain layout, float32, mode bilinear: places are the lanes.
inline void backward_grid_plain(const Params& p, int64_t begin, int64_t end) {
  Places<float> places;
  alignas(64) int32_t voxel[8][chunk];
  alignas(64) float gradient[3][chunk];
  const int64_t voxels = p.d * p.h * p.w;
  for (int64_t image = begin / p.points; begin < end; ++image) {
    const int64_t stop = std::min(end, (image + 1) * p.points);
    for (; begin < stop; begin += chunk) {
      const int64_t count = std::min(chunk, stop - begin), at = begin - image * p.points;
      place(p, static_cast<const float*>(p.grid) + begin * 3, count, places);
      corner_voxels(p, places, voxel);
      const auto* x = static_cast<const float*>(p.x) + image * p.channels * voxels;
      const auto* dy = static_cast<const float*>(p.dy) + image * p.channels * p.points + at;
      for (int64_t i = 0; i < count; i += Vec::width) {
        Vec gx = Vec::zero(), gy = Vec::zero(), gz = Vec::zero();
        for (int k = 0; k < 8; ++k) {
          const Vec sx = Vec::load((k & 1 ? places.x.upper_slope : places.x.lower_slope) + i);
          const Vec sy = Vec::load((k & 2 ? places.y.upper_slope : places.y.lower_slope) + i);
          const Vec sz = Vec::load((k & 4 ? places.z.upper_slope : places.z.lower_slope) + i);
          const Vec wx = Vec::load((k & 1 ? places.x.upper_weight : places.x.lower_weight) + i);
          const Vec wy = Vec::load((k & 2 ? places.y.upper_weight : places.y.lower_weight) + i);
          const Vec wz = Vec::load((k & 4 ? places.z.upper_weight : places.z.lower_weight) + i);
          const Vec of_x = sx * wy * wz, of_y = wx * sy * wz, of_z = wx * wy * sz;
          Vec product = Vec::zero();
          for (int64_t c = 0; c < p.channels; ++c) {
            product = Vec::fma(Vec::gather(x + c * voxels, voxel[k] + i),
                               load_up_to<Vec>(dy + c * p.points + i, count - i), product);
          }
          // A corner that does not count may hold anything, infinity too.
          const auto none =
              Vec::equal(Vec::max(of_x * of_x, Vec::max(of_y * of_y, of_z * of_z)), Vec::zero());
          product = Vec::select(none, Vec::zero(), product);
          gx = Vec::fma(product, of_x, gx);
          gy = Vec::fma(product, of_y, gy);
          gz = Vec::fma(product, of_z, gz);
        }
        gx.store(gradient[0] + i);
        gy.store(gradient[1] + i);
        gz.store(gradient[2] + i);
      }
      float* dgrid = static_cast<float*>(p.result) + begin * 3;
      for (int64_t i = 0; i < count; ++i) {
        for (int axis = 0; axis < 3; ++axis) dgrid[3 * i + axis] = gradient[axis][i];
      }
    }
    begin = stop;
  }
}

#define VOLNET_DEFINE(DTYPE, V, T)                                                                    \
  void forward_##DTYPE(const Params& p, int64_t begin, int64_t end) { forward<V, T>(p, begin, end); } \
  void backward_input_##DTYPE(const Params& p, const Part& part) { backward_input<V, T>(p, part); }   \
  void backward_grid_##DTYPE(const Params& p, int64_t begin, int64_t end) {                           \
    backward_grid<V, T>(p, begin, end);                                                               \
  }
VOLNET_DEFINE(f32, Vec, float)
VOLNET_DEFINE(bf16, Vec, bfloat16)
void forward_plain_f32(const Params& p, int64_t begin, int64_t end) { forward_plain(p, begin, end); }
void backward_grid_plain_f32(const Params& p, int64_t begin, int64_t end) {
  backward_grid_plain(p, begin, end);
}

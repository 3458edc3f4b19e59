// The weight gradient in the Winograd domain, of one instruction set. Included after winograd_body.h; the
// including file defines `gradient_rows`, channels whose sums with three vectors of filters fit the
// registers.

// A row of B^T or A: the voxels along d that it adds up.
struct Terms {
  int64_t count = 0;
  int64_t voxel[4];
  float factor[4];

  template <int N>
  explicit Terms(const float (&row)[N]) {
    for (int i = 0; i < N; ++i) {
      if (row[i] == 0) continue;
      voxel[count] = i;
      factor[count++] = row[i];
    }
  }
};

// V: of alpha voxels x, B^T x.
struct InputSide {
  template <int M>
  static constexpr int size = alpha_of<M>;

  static int64_t size_of(const WinogradAxis& axis) { return axis.alpha(); }

  template <int M>
  static inline void transform(Vec* d) {
    input_transform<M>(d);
  }

  static Terms terms(int64_t m, int64_t a) {
    static constexpr float one[1][1] = {{1}};
    static constexpr float two[4][4] = {{1, 0, -1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, 1, 0, -1}};
    static constexpr float four[6][6] = {{4, 0, -5, 0, 1, 0},  {0, -4, -4, 1, 1, 0}, {0, 4, -4, -1, 1, 0},
                                         {0, -2, -1, 2, 1, 0}, {0, 2, -1, -2, 1, 0}, {0, 4, 0, -5, 0, 1}};
    return m == 4 ? Terms(four[a]) : m == 2 ? Terms(two[a]) : Terms(one[a]);
  }
};

// W: of M voxels dy, A dy.
struct OutputSide {
  template <int M>
  static constexpr int size = M;

  static int64_t size_of(const WinogradAxis& axis) { return axis.m; }

  template <int M>
  static inline void transform(Vec* d) {
    if constexpr (M == 2) {
      const Vec d0 = d[0], d1 = d[1];
      d[1] = d0 + d1;
      d[2] = d0 - d1;
      d[3] = Vec::zero() - d1;
    } else if constexpr (M == 4) {
      const Vec d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3];
      const Vec four = Vec::broadcast(4.0f), two = Vec::broadcast(2.0f);
      const Vec even = d0 + d2, odd = d1 + d3;
      const Vec even2 = Vec::fma(four, d2, d0), odd2 = two * Vec::fma(four, d3, d1);
      d[1] = even + odd;
      d[2] = even - odd;
      d[3] = even2 + odd2;
      d[4] = even2 - odd2;
      d[5] = d3;
    }
  }

  static Terms terms(int64_t m, int64_t a) {
    static constexpr float one[1][1] = {{1}};
    static constexpr float two[4][2] = {{1, 0}, {1, 1}, {1, -1}, {0, -1}};
    static constexpr float four[6][4] = {{1, 0, 0, 0}, {1, 1, 1, 1},   {1, -1, 1, -1},
                                         {1, 2, 4, 8}, {1, -2, 4, -8}, {0, 0, 0, 1}};
    return m == 4 ? Terms(four[a]) : m == 2 ? Terms(two[a]) : Terms(one[a]);
  }
};

// One plane of V or W, for one vector of channels. Row e of term i begins at rows[i * size_h + e] (null where
// it lies outside); of its voxels those in [begin, end) exist.
template <class Side, int MH, int MW, class S>
void slice(const S* const* rows, const Terms& terms, int64_t begin, int64_t end, int64_t offset,
           int64_t voxel, int64_t lanes, float* to) {
  constexpr int sh = Side::template size<MH>, sw = Side::template size<MW>;
  constexpr int ah = alpha_of<MH>, aw = alpha_of<MW>;
  const bool whole = begin == 0 && end == sw && lanes == Vec::width;
  Vec d[sh][aw];
  for (int e = 0; e < sh; ++e) {
    Vec sum[aw];
#pragma GCC unroll 8
    for (int f = 0; f < sw; ++f) sum[f] = Vec::zero();
    for (int64_t i = 0; i < terms.count; ++i) {
      const S* row = rows[i * sh + e];
      if (row == nullptr) continue;
      row += offset;
      const Vec factor = Vec::broadcast(terms.factor[i]);
      if (whole) {
#pragma GCC unroll 8
        for (int f = 0; f < sw; ++f) sum[f] = Vec::fma(factor, Vec::load(row + f * voxel), sum[f]);
      } else {
#pragma GCC unroll 8
        for (int f = 0; f < sw; ++f) {
          if (f >= begin && f < end) sum[f] = Vec::fma(factor, Vec::load(row + f * voxel, lanes), sum[f]);
        }
      }
    }
    Side::template transform<MW>(sum);
#pragma GCC unroll 8
    for (int f = 0; f < aw; ++f) d[e][f] = sum[f];
  }
  for (int f = 0; f < aw; ++f) {
    Vec column[ah];
#pragma GCC unroll 8
    for (int e = 0; e < sh; ++e) column[e] = in_register(d[e][f]);
    Side::template transform<MH>(column);
#pragma GCC unroll 8
    for (int e = 0; e < ah; ++e) column[e].store(to + (e * aw + f) * Vec::width);
  }
}

template <class S>
using Slice = void (*)(const S* const*, const Terms&, int64_t, int64_t, int64_t, int64_t, int64_t, float*);

template <class Side, class S>
Slice<S> slice_of(int64_t m_h, int64_t m_w) {
  static constexpr Slice<S> slices[3][3] = {
      {slice<Side, 1, 1, S>, slice<Side, 1, 2, S>, slice<Side, 1, 4, S>},
      {slice<Side, 2, 1, S>, slice<Side, 2, 2, S>, slice<Side, 2, 4, S>},
      {slice<Side, 4, 1, S>, slice<Side, 4, 2, S>, slice<Side, 4, 4, S>}};
  return slices[index_of(m_h)][index_of(m_w)];
}

// Plane a of V or W of the tiles [first, first + count), channels [c_first, c_first + c_count) of a volume of
// size[0] * size[1] * size[2] voxels, whose tiles begin `shift` voxels before the outputs.
template <class Side, class S>
void slices(const WinogradGradient& call, const void* volume, const std::array<int64_t, 3>& size,
            const std::array<int64_t, 3>& shift, int64_t voxel, int64_t c_first, int64_t c_count,
            int64_t chunk, int64_t a, int64_t first, int64_t count, float* to) {
  const auto& [depth, height, width] = call.forward.axes;
  const Terms terms = Side::terms(depth.m, a);
  const int64_t sh = Side::size_of(height), sw = Side::size_of(width);
  const auto run = slice_of<Side, S>(height.m, width.m);
  const S* rows[4 * 6];
  for (int64_t t = first; t < first + count; ++t) {
    const TilePosition at = position_of(call.forward, t);
    const int64_t j0 = at.h + shift[1], l0 = at.w + shift[2];
    const int64_t begin = std::max<int64_t>(0, -l0), end = std::min(sw, size[2] - l0);
    for (int64_t n = 0; n < terms.count; ++n) {
      const int64_t i = at.d + shift[0] + terms.voxel[n];
      for (int64_t e = 0; e < sh; ++e) {
        const int64_t j = j0 + e;
        const bool inside = i >= 0 && i < size[0] && j >= 0 && j < size[1] && begin < end;
        rows[n * sh + e] = !inside
                               ? nullptr
                               : static_cast<const S*>(volume) +
                                     (((at.n * size[0] + i) * size[1] + j) * size[2] + l0) * voxel + c_first;
      }
    }
    for (int64_t c = 0; c < chunk; c += Vec::width, to += call.v_step) {
      const int64_t lanes = std::clamp<int64_t>(c_count - c, 0, Vec::width);
      run(rows, terms, begin, lanes > 0 ? end : begin, c, voxel, lanes, to);
    }
  }
}

// du[r][k] += sum over tiles of v[tile][r] * w[tile][k], R channels and V vectors of filters.
template <int R, int V>
void outer_sum(const float* v, int64_t v_tile, const float* w, int64_t w_tile, int64_t w_step, int64_t tiles,
               float* du, int64_t du_step) {
  Vec sum[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < V; ++i) sum[r][i] = Vec::load(du + r * du_step + i * Vec::width);
  }
  for (int64_t t = 0; t < tiles; ++t, v += v_tile, w += w_tile) {
    Vec gradient[V];
    for (int i = 0; i < V; ++i) {
      gradient[i] = Vec::load(w + i * w_step);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec value = Vec::broadcast(v[r]);
      for (int i = 0; i < V; ++i) sum[r][i] = Vec::fma(value, gradient[i], sum[r][i]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < V; ++i) sum[r][i].store(du + r * du_step + i * Vec::width);
  }
}

// G^T u of one axis, in registers: M + 2 become three taps.
template <int M>
inline void gradient_transform(Vec* u) {
  if constexpr (M == 2) {
    const Vec half = Vec::broadcast(0.5f);
    const Vec sum = half * (u[1] + u[2]), difference = half * (u[1] - u[2]);
    u[0] = u[0] + sum;
    u[2] = sum + u[3];
    u[1] = difference;
  } else if constexpr (M == 4) {
    const Vec sixth = Vec::broadcast(1.0f / 6);
    const Vec sum = sixth * (u[1] + u[2]), difference = sixth * (u[2] - u[1]);
    const Vec sum2 = u[3] + u[4], difference2 = u[3] - u[4];
    u[0] =
        Vec::fma(Vec::broadcast(0.25f), u[0], Vec::fma(Vec::broadcast(1.0f / 24), sum2, Vec::zero() - sum));
    u[1] = Vec::fma(Vec::broadcast(1.0f / 12), difference2, difference);
    u[2] = Vec::fma(sixth, sum2, u[5]) - sum;
  }
}

template <int M>
inline constexpr int taps_of = M == 1 ? 1 : 3;

// Along h and w, from the products of a plane (du_step floats apart) to taps (step floats apart).
template <int MH, int MW>
void gradient_plane(const float* du, int64_t du_step, float* to, int64_t step) {
  constexpr int ah = alpha_of<MH>, aw = alpha_of<MW>, th = taps_of<MH>, tw = taps_of<MW>;
  Vec d[th][aw];
#pragma GCC unroll 8
  for (int f = 0; f < aw; ++f) {
    Vec column[ah];
#pragma GCC unroll 8
    for (int e = 0; e < ah; ++e) column[e] = in_register(Vec::load(du + (e * aw + f) * du_step));
    gradient_transform<MH>(column);
#pragma GCC unroll 8
    for (int e = 0; e < th; ++e) d[e][f] = column[e];
  }
#pragma GCC unroll 8
  for (int e = 0; e < th; ++e) {
    gradient_transform<MW>(d[e]);
#pragma GCC unroll 8
    for (int f = 0; f < tw; ++f) d[e][f].store(to + (e * tw + f) * step);
  }
}

using GradientPlane = void (*)(const float*, int64_t, float*, int64_t);

// The index of the point 1 of an axis.
inline int64_t point_one(const WinogradAxis& axis) { return axis.m == 1 ? 0 : 1; }

template <class S>
void winograd_gradient(const WinogradGradient& call, int64_t piece, void* scratch) {
  const Winograd& forward = call.forward;
  const auto& [depth, height, width] = forward.axes;
  const int64_t k = piece % call.k_chunks, c = piece / call.k_chunks % call.c_chunks;
  const int64_t outer = piece / (call.k_chunks * call.c_chunks);
  const int64_t a = outer % depth.alpha(), group = outer / depth.alpha() % forward.groups;
  const int64_t range = outer / (depth.alpha() * forward.groups);
  const int64_t begin = forward.tiles() * range / call.ranges,
                end = forward.tiles() * (range + 1) / call.ranges;
  const int64_t c_first = c * call.c_chunk, k_first = k * call.k_chunk, plane = call.plane();

  auto* v = static_cast<float*>(scratch);
  const int64_t v_tile = call.c_chunk / Vec::width * call.v_step;
  const int64_t w_tile = call.k_chunk / Vec::width * call.v_step;
  float* w = v + call.block_tiles * v_tile;
  float* du = w + call.block_tiles * w_tile;
  std::fill_n(du, plane * call.u_step(), 0.0f);
  const bool sums_bias = c == 0 && a == point_one(depth);
  float* bias = call.partial_bias + (range * forward.groups + group) * call.k_padded() + k_first;
  if (sums_bias) std::fill_n(bias, call.k_chunk, 0.0f);

  const int64_t vectors = call.k_chunk / Vec::width, passes = (vectors + 2) / 3;
  for (int64_t first = begin; first < end; first += call.block_tiles) {
    const int64_t count = std::min(call.block_tiles, end - first);
    slices<InputSide, S>(call, forward.x, {depth.input, height.input, width.input},
                         {depth.first, height.first, width.first}, forward.groups * forward.channels,
                         group * forward.channels + c_first, forward.channels - c_first, call.c_chunk, a,
                         first, count, v);
    slices<OutputSide, S>(call, call.dy, {depth.output, height.output, width.output}, {0, 0, 0},
                          forward.groups * forward.filters, group * forward.filters + k_first,
                          forward.filters - k_first, call.k_chunk, a, first, count, w);
    for (int64_t q = 0; q < plane; ++q) {
      for (int64_t pass = 0, i = 0; pass < passes; ++pass) {
        const int64_t n = (vectors - i + passes - pass - 1) / (passes - pass);
        const auto run = n == 3   ? outer_sum<gradient_rows, 3>
                         : n == 2 ? outer_sum<gradient_rows, 2>
                                  : outer_sum<gradient_rows, 1>;
        for (int64_t row = 0; row < call.c_chunk; row += gradient_rows) {
          run(v + row / Vec::width * call.v_step + q * Vec::width + row % Vec::width, v_tile,
              w + i * call.v_step + q * Vec::width, w_tile, call.v_step, count,
              du + q * call.u_step() + row * call.k_chunk + i * Vec::width, call.k_chunk);
        }
        i += n;
      }
    }
    if (!sums_bias) continue;
    const float* ones = w + (point_one(height) * width.alpha() + point_one(width)) * Vec::width;
    for (int64_t t = 0; t < count; ++t) {
      for (int64_t i = 0; i < vectors; ++i) {
        float* to = bias + i * Vec::width;
        (Vec::load(to) + Vec::load(ones + t * w_tile + i * call.v_step)).store(to);
      }
    }
  }

  static constexpr GradientPlane planes[3][3] = {
      {gradient_plane<1, 1>, gradient_plane<1, 2>, gradient_plane<1, 4>},
      {gradient_plane<2, 1>, gradient_plane<2, 2>, gradient_plane<2, 4>},
      {gradient_plane<4, 1>, gradient_plane<4, 2>, gradient_plane<4, 4>}};
  const auto reduce = planes[index_of(height.m)][index_of(width.m)];
  const int64_t chunk = call.c_chunk * call.k_chunk;
  float* partial = call.partial + piece * call.plane_taps() * chunk;
  for (int64_t i = 0; i < chunk; i += Vec::width) reduce(du + i, call.u_step(), partial + i, chunk);
}

template <int M>
void gradient_along_d(const Vec* u, int64_t inner, Vec* to) {
  for (int64_t q = 0; q < inner; ++q) {
    Vec d[alpha_of<M>];
    for (int a = 0; a < alpha_of<M>; ++a) d[a] = u[a * inner + q];
    gradient_transform<M>(d);
    for (int a = 0; a < taps_of<M>; ++a) to[a * inner + q] = d[a];
  }
}

void winograd_gradient_weights(const WinogradGradient& call, int64_t group, int64_t c, float* dw) {
  const Winograd& forward = call.forward;
  const WinogradAxis& depth = forward.axes[0];
  const int64_t inner = call.plane_taps(), taps = depth.taps() * inner, chunk = call.c_chunk * call.k_chunk;
  const auto along_d = depth.m == 4   ? gradient_along_d<4>
                       : depth.m == 2 ? gradient_along_d<2>
                                      : gradient_along_d<1>;
  Vec u[6 * 9], g[27];
  for (int64_t k = 0; k < forward.filters; k += Vec::width) {
    for (int64_t a = 0; a < depth.alpha(); ++a) {
      for (int64_t q = 0; q < inner; ++q) {
        Vec sum = Vec::zero();
        for (int64_t range = 0; range < call.ranges; ++range) {
          const int64_t piece = call.piece(range, group, a, c / call.c_chunk, k / call.k_chunk);
          sum = sum + Vec::load(call.partial + (piece * inner + q) * chunk + c % call.c_chunk * call.k_chunk +
                                k % call.k_chunk);
        }
        u[a * inner + q] = sum;
      }
    }
    along_d(u, inner, g);
    const int64_t filters = std::min(Vec::width, forward.filters - k);
    for (int64_t t = 0; t < taps; ++t) {
      float lanes[Vec::width];
      g[t].store(lanes);
      for (int64_t i = 0; i < filters; ++i) {
        dw[((group * forward.filters + k + i) * forward.channels + c) * taps + t] = lanes[i];
      }
    }
  }
}

void winograd_gradient_f32(const WinogradGradient& call, int64_t piece, void* scratch) {
  winograd_gradient<float>(call, piece, scratch);
}
void winograd_gradient_bf16(const WinogradGradient& call, int64_t piece, void* scratch) {
  winograd_gradient<bfloat16>(call, piece, scratch);
}

// The Winograd transforms and products of one instruction set. Included inside volnet::conv3d::VOLNET_ISA
// after Vec; the including file defines `row_tile`.
#include "kernels/conv3d/epilogue_body.h"

// B^T d of one axis, in registers: M outputs a tile.
template <int M>
inline void input_transform(Vec* d) {
  if constexpr (M == 2) {
    const Vec d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3];
    d[0] = d0 - d2;
    d[1] = d1 + d2;
    d[2] = d2 - d1;
    d[3] = d1 - d3;
  } else if constexpr (M == 4) {
    const Vec four = Vec::broadcast(4.0f), minus_four = Vec::broadcast(-4.0f),
              minus_five = Vec::broadcast(-5.0f), two = Vec::broadcast(2.0f);
    const Vec d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3], d4 = d[4], d5 = d[5];
    const Vec even = Vec::fma(minus_four, d2, d4), odd = Vec::fma(minus_four, d1, d3);
    const Vec even2 = d4 - d2, odd2 = two * (d3 - d1);
    d[0] = Vec::fma(four, d0, Vec::fma(minus_five, d2, d4));
    d[1] = even + odd;
    d[2] = even - odd;
    d[3] = even2 + odd2;
    d[4] = even2 - odd2;
    d[5] = Vec::fma(four, d1, Vec::fma(minus_five, d3, d5));
  }
}

// A^T m of one axis: the first M entries become the outputs.
template <int M>
inline void output_transform(Vec* m) {
  if constexpr (M == 2) {
    const Vec sum = m[1] + m[2], difference = m[1] - m[2];
    m[0] = m[0] + sum;
    m[1] = difference - m[3];
  } else if constexpr (M == 4) {
    const Vec sum = m[1] + m[2], difference = m[1] - m[2], sum2 = m[3] + m[4], difference2 = m[3] - m[4];
    m[0] = m[0] + sum + sum2;
    m[1] = Vec::fma(Vec::broadcast(2.0f), difference2, difference);
    m[2] = Vec::fma(Vec::broadcast(4.0f), sum2, sum);
    m[3] = Vec::fma(Vec::broadcast(8.0f), difference2, difference) + m[5];
  }
}

template <int M>
inline constexpr int alpha_of = M == 1 ? 1 : M + 2;

constexpr int64_t largest_tile = 216;  // vectors: 6 * 6 * 6

// The rows of a tile along w, for one vector of channels: rows[i] is the tile's first voxel in row i, or null
// where the row lies outside; of its alpha voxels those in [begin, end) exist.
template <int M, class S>
void input_along_w(const S* const* rows, int64_t row_count, int64_t begin, int64_t end, int64_t voxel,
                   int64_t lanes, Vec* buffer) {
  constexpr int alpha = alpha_of<M>;
  const bool whole = begin == 0 && end == alpha && lanes == Vec::width;
  for (int64_t i = 0; i < row_count; ++i, buffer += alpha) {
    const S* row = rows[i];
    Vec d[alpha];
    if (row == nullptr) {
#pragma GCC unroll 8
      for (int f = 0; f < alpha; ++f) buffer[f] = Vec::zero();
      continue;
    }
    if (whole) {
#pragma GCC unroll 8
      for (int f = 0; f < alpha; ++f) d[f] = Vec::load(row + f * voxel);
    } else {
#pragma GCC unroll 8
      for (int f = 0; f < alpha; ++f) {
        d[f] = f >= begin && f < end ? Vec::load(row + f * voxel, lanes) : Vec::zero();
      }
    }
    input_transform<M>(d);
#pragma GCC unroll 8
    for (int f = 0; f < alpha; ++f) buffer[f] = d[f];
  }
}

// Along h in place: buffer [outer][alpha][inner].
template <int M>
void input_along_h(Vec* buffer, int64_t outer, int64_t inner) {
  constexpr int alpha = alpha_of<M>;
  if (M == 1) return;
  for (int64_t a = 0; a < outer; ++a, buffer += alpha * inner) {
    for (int64_t f = 0; f < inner; ++f) {
      Vec d[alpha];
#pragma GCC unroll 8
      for (int e = 0; e < alpha; ++e) d[e] = buffer[e * inner + f];
      input_transform<M>(d);
#pragma GCC unroll 8
      for (int e = 0; e < alpha; ++e) buffer[e * inner + f] = d[e];
    }
  }
}

// Along d, and out to V: product p of this tile lies at v[p * v_step].
template <int M>
void input_along_d(const Vec* buffer, int64_t inner, float* v, int64_t v_step) {
  constexpr int alpha = alpha_of<M>;
  for (int64_t q = 0; q < inner; ++q) {
    Vec d[alpha];
#pragma GCC unroll 8
    for (int a = 0; a < alpha; ++a) d[a] = buffer[a * inner + q];
    input_transform<M>(d);
#pragma GCC unroll 8
    for (int a = 0; a < alpha; ++a) d[a].store(v + (a * inner + q) * v_step);
  }
}

// Along d, from M: product p of this tile lies at m[p * m_step]; buffer [M][inner].
template <int M>
void output_along_d(const float* m, int64_t m_step, int64_t inner, Vec* buffer) {
  constexpr int alpha = alpha_of<M>;
  for (int64_t q = 0; q < inner; ++q) {
    Vec d[alpha];
#pragma GCC unroll 8
    for (int a = 0; a < alpha; ++a) d[a] = Vec::load(m + (a * inner + q) * m_step);
    output_transform<M>(d);
#pragma GCC unroll 8
    for (int a = 0; a < M; ++a) buffer[a * inner + q] = d[a];
  }
}

// Along h: from [outer][alpha][inner] to [outer][M][inner], in place (each group shrinks toward the front).
template <int M>
void output_along_h(Vec* buffer, int64_t outer, int64_t inner) {
  constexpr int alpha = alpha_of<M>;
  if (M == 1) return;
  const Vec* from = buffer;
  for (int64_t a = 0; a < outer; ++a, from += alpha * inner, buffer += M * inner) {
    for (int64_t f = 0; f < inner; ++f) {
      Vec d[alpha];
#pragma GCC unroll 8
      for (int e = 0; e < alpha; ++e) d[e] = from[e * inner + f];
      output_transform<M>(d);
#pragma GCC unroll 8
      for (int e = 0; e < M; ++e) buffer[e * inner + f] = d[e];
    }
  }
}

// One row of outputs: alpha products to M voxels, of which the first `count` exist.
template <int M, class S>
void output_along_w(const Vec* buffer, Vec bias, int64_t count, int64_t lanes, S* y, int64_t voxel) {
  constexpr int alpha = alpha_of<M>;
  Vec d[alpha];
#pragma GCC unroll 8
  for (int f = 0; f < alpha; ++f) d[f] = buffer[f];
  output_transform<M>(d);
  if (count == M && lanes == Vec::width) {
#pragma GCC unroll 8
    for (int f = 0; f < M; ++f) (d[f] + bias).store(y + f * voxel);
  } else {
#pragma GCC unroll 8
    for (int f = 0; f < M; ++f) {
      if (f < count) (d[f] + bias).store(y + f * voxel, lanes);
    }
  }
}

struct TilePosition {
  int64_t n, d, h, w;  // image, first output voxel
};

inline TilePosition position_of(const Winograd& plan, int64_t tile) {
  const auto& [depth, height, width] = plan.axes;
  const int64_t w = tile % width.tiles, h = tile / width.tiles % height.tiles;
  const int64_t d = tile / (width.tiles * height.tiles) % depth.tiles;
  return {tile / (width.tiles * height.tiles * depth.tiles), d * depth.m, h * height.m, w * width.m};
}

template <class S>
void winograd_input(const Winograd& plan, int64_t group, int64_t first, int64_t count, float* v) {
  const auto& [depth, height, width] = plan.axes;
  const int64_t ad = depth.alpha(), ah = height.alpha(), aw = width.alpha();
  const int64_t voxel = plan.groups * plan.channels;
  const int64_t v_step = plan.v_step;
  const auto along_w = width.m == 4   ? input_along_w<4, S>
                       : width.m == 2 ? input_along_w<2, S>
                                      : input_along_w<1, S>;
  const auto along_h = height.m == 4 ? input_along_h<4> : height.m == 2 ? input_along_h<2> : input_along_h<1>;
  const auto along_d = depth.m == 4 ? input_along_d<4> : depth.m == 2 ? input_along_d<2> : input_along_d<1>;
  Vec buffer[largest_tile];
  const S* rows[36];
  for (int64_t t = 0; t < count; ++t) {
    const TilePosition at = position_of(plan, first + t);
    const int64_t i0 = at.d + depth.first, j0 = at.h + height.first, l0 = at.w + width.first;
    const int64_t begin = std::max<int64_t>(0, -l0), end = std::min(aw, width.input - l0);
    for (int64_t c = 0; c < plan.channels; c += Vec::width) {
      for (int64_t a = 0; a < ad; ++a) {
        for (int64_t e = 0; e < ah; ++e) {
          const int64_t i = i0 + a, j = j0 + e;
          const bool inside = i >= 0 && i < depth.input && j >= 0 && j < height.input && begin < end;
          rows[a * ah + e] =
              !inside ? nullptr
                      : static_cast<const S*>(plan.x) +
                            (((at.n * depth.input + i) * height.input + j) * width.input + l0) * voxel +
                            group * plan.channels + c;
        }
      }
      const int64_t lanes = std::min(Vec::width, plan.channels - c);
      // The next tile's new voxels: their rows lie too far apart for the hardware to foresee them.
      if (l0 + aw < width.input) {
        const int64_t ahead = std::min(width.m, width.input - l0 - aw);
        for (int64_t i = 0; i < ad * ah; ++i) {
          if (rows[i] == nullptr) continue;
          for (int64_t f = 0; f < ahead; ++f) __builtin_prefetch(rows[i] + (aw + f) * voxel);
        }
      }
      along_w(rows, ad * ah, begin, end, voxel, lanes, buffer);
      along_h(buffer, ad, aw);
      along_d(buffer, ah * aw, v + t * plan.c_padded + c, v_step);
    }
  }
}

template <class S>
void winograd_output(const Winograd& plan, int64_t group, int64_t first, int64_t count, const float* m) {
  const auto& [depth, height, width] = plan.axes;
  const int64_t ah = height.alpha(), aw = width.alpha();
  const int64_t voxel = plan.groups * plan.filters;
  const int64_t m_step = plan.m_step;
  const auto along_d = depth.m == 4   ? output_along_d<4>
                       : depth.m == 2 ? output_along_d<2>
                                      : output_along_d<1>;
  const auto along_h = height.m == 4   ? output_along_h<4>
                       : height.m == 2 ? output_along_h<2>
                                       : output_along_h<1>;
  const auto along_w = width.m == 4   ? output_along_w<4, S>
                       : width.m == 2 ? output_along_w<2, S>
                                      : output_along_w<1, S>;
  const auto along_w_to_sums = width.m == 4   ? output_along_w<4, float>
                               : width.m == 2 ? output_along_w<2, float>
                                              : output_along_w<1, float>;
  const bool plain = plan.epilogue.empty();
  Vec buffer[largest_tile];
  float sums[4 * Vec::width];  // of a row, where an epilogue follows
  for (int64_t t = 0; t < count; ++t) {
    const TilePosition at = position_of(plan, first + t);
    const int64_t slot = at.n * plan.epilogue.slots + (first + t) / plan.block_tiles -
                         at.n * plan.image_tiles() / plan.block_tiles;
    const int64_t d_count = std::min(depth.m, depth.output - at.d),
                  h_count = std::min(height.m, height.output - at.h);
    const int64_t w_count = std::min(width.m, width.output - at.w);
    for (int64_t k = 0; k < plan.filters; k += Vec::width) {
      const int64_t lanes = std::min(Vec::width, plan.filters - k);
      const int64_t filter = group * plan.filters + k;
      const Vec bias = plan.bias == nullptr ? Vec::zero() : Vec::load(plan.bias + filter, lanes);
      along_d(m + t * plan.k_padded + k, m_step, ah * aw, buffer);
      along_h(buffer, depth.m, aw);
      for (int64_t a = 0; a < d_count; ++a) {
        for (int64_t e = 0; e < h_count; ++e) {
          const int64_t offset =
              (((at.n * depth.output + at.d + a) * height.output + at.h + e) * width.output + at.w) * voxel +
              filter;
          const Vec* row = buffer + (a * height.m + e) * aw;
          if (plain) {
            along_w(row, bias, w_count, lanes, static_cast<S*>(plan.y) + offset, voxel);
          } else {
            along_w_to_sums(row, Vec::zero(), w_count, Vec::width, sums, Vec::width);
            finish<Vec, S>(plan.epilogue, plan.bias,
                           {sums, Vec::width, w_count, filter, lanes, plan.y, offset, voxel, slot, voxel});
          }
        }
      }
    }
  }
}

// R tiles times V vectors of filters: m[r] = sum over c of v[r][c] * u[c].
template <int R, int V>
void product(const float* v, int64_t v_step, const float* u, int64_t channels, float* m, int64_t m_step) {
  Vec sum[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < V; ++i) sum[r][i] = Vec::zero();
  }
  for (int64_t c = 0; c < channels; ++c, u += V * Vec::width) {
    Vec weight[V];
    for (int i = 0; i < V; ++i) weight[i] = Vec::load(u + i * Vec::width);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec value = Vec::broadcast(v[r * v_step + c]);
      for (int i = 0; i < V; ++i) sum[r][i] = Vec::fma(value, weight[i], sum[r][i]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < V; ++i) sum[r][i].store(m + r * m_step + i * Vec::width);
  }
}

using Product = void (*)(const float*, int64_t, const float*, int64_t, float*, int64_t);

template <int V, int... R>
Product product_of(int64_t rows, std::integer_sequence<int, R...>) {
  static constexpr Product products[] = {product<R + 1, V>...};
  return products[rows - 1];
}

void winograd_multiply(const Winograd& plan, int64_t group, int64_t p_begin, int64_t p_end, int64_t count,
                       const float* v, float* m) {
  const int64_t blocks = plan.k_padded / plan.k_block;
  const int64_t passes = (count + row_tile - 1) / row_tile;
  for (int64_t p = p_begin; p < p_end; ++p) {
    for (int64_t block = 0; block < blocks; ++block) {
      const float* u =
          plan.weights + ((group * plan.products() + p) * blocks + block) * plan.channels * plan.k_block;
      for (int64_t pass = 0, t = 0; pass < passes; ++pass) {
        const int64_t rows = (count - t + passes - pass - 1) / (passes - pass);
        const auto run = plan.k_block == Vec::width
                             ? product_of<1>(rows, std::make_integer_sequence<int, row_tile>{})
                             : product_of<2>(rows, std::make_integer_sequence<int, row_tile>{});
        run(v + p * plan.v_step + t * plan.c_padded, plan.c_padded, u, plan.channels,
            m + p * plan.m_step + t * plan.k_padded + block * plan.k_block, plan.k_padded);
        t += rows;
      }
    }
  }
}

// G g of one axis, in registers: three taps become M + 2.
template <int M>
inline void weight_transform(const Vec* g, Vec* u) {
  if constexpr (M == 1) {
    u[0] = g[0];
  } else {
    const Vec outer = g[0] + g[2];
    if constexpr (M == 2) {
      const Vec half = Vec::broadcast(0.5f);
      u[1] = half * (outer + g[1]);
      u[2] = half * (outer - g[1]);
      u[0] = g[0];
      u[3] = g[2];
    } else {
      const Vec sixth = Vec::broadcast(-1.0f / 6), small = Vec::broadcast(1.0f / 24);
      const Vec twelfth = Vec::broadcast(1.0f / 12) * g[1];
      const Vec even = Vec::fma(Vec::broadcast(1.0f / 6), g[2], small * g[0]);
      u[0] = Vec::broadcast(0.25f) * g[0];
      u[1] = sixth * (outer + g[1]);
      u[2] = sixth * (outer - g[1]);
      u[3] = even + twelfth;
      u[4] = even - twelfth;
      u[5] = g[2];
    }
  }
}

// Along one axis of [outer][taps][inner] vectors to [outer][alpha][inner].
template <int M>
void weights_along(const Vec* from, int64_t outer, int64_t inner, Vec* to) {
  constexpr int alpha = alpha_of<M>, taps = M == 1 ? 1 : 3;
  for (int64_t a = 0; a < outer; ++a) {
    for (int64_t q = 0; q < inner; ++q) {
      Vec g[taps], u[alpha];
      for (int t = 0; t < taps; ++t) g[t] = from[(a * taps + t) * inner + q];
      weight_transform<M>(g, u);
      for (int f = 0; f < alpha; ++f) to[(a * alpha + f) * inner + q] = u[f];
    }
  }
}

inline void weights_along_axis(int64_t m, const Vec* from, int64_t outer, int64_t inner, Vec* to) {
  const auto along = m == 4 ? weights_along<4> : m == 2 ? weights_along<2> : weights_along<1>;
  along(from, outer, inner, to);
}

void winograd_weights(const Winograd& plan, int64_t p_step, const float* taps, float* u) {
  const auto& [depth, height, width] = plan.axes;
  const int64_t td = depth.taps(), th = height.taps(), tw = width.taps();
  Vec one[largest_tile], two[largest_tile];
  for (int64_t k = 0; k < plan.k_block; k += Vec::width) {
    for (int64_t i = 0; i < td * th * tw; ++i) one[i] = Vec::load(taps + i * plan.k_block + k);
    weights_along_axis(width.m, one, td * th, 1, two);
    weights_along_axis(height.m, two, td, width.alpha(), one);
    weights_along_axis(depth.m, one, 1, height.alpha() * width.alpha(), two);
    for (int64_t p = 0; p < plan.products(); ++p) two[p].store(u + p * p_step + k);
  }
}

void winograd_input_f32(const Winograd& plan, int64_t group, int64_t first, int64_t count, float* v) {
  winograd_input<float>(plan, group, first, count, v);
}
void winograd_input_bf16(const Winograd& plan, int64_t group, int64_t first, int64_t count, float* v) {
  winograd_input<bfloat16>(plan, group, first, count, v);
}
void winograd_output_f32(const Winograd& plan, int64_t group, int64_t first, int64_t count, const float* m) {
  winograd_output<float>(plan, group, first, count, m);
}
void winograd_output_bf16(const Winograd& plan, int64_t group, int64_t first, int64_t count, const float* m) {
  winograd_output<bfloat16>(plan, group, first, count, m);
}

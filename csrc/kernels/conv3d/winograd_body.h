// The Winograd transforms and products of one instruction set. Included inside volnet::conv3d::VOLNET_ISA
// after Vec; the including file defines `row_tile`.
#include "kernels/conv3d/epilogue_body.h"
#include "kernels/conv3d/input_body.h"

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
              minus_five = Vec::broadcast(-5.0f), two = Vec::broadcast(2.0f),
              minus_two = Vec::broadcast(-2.0f);
    const Vec d0 = d[0], d1 = d[1], d2 = d[2], d3 = d[3], d4 = d[4], d5 = d[5];
    const Vec even = Vec::fma(minus_four, d2, d4), odd = Vec::fma(minus_four, d1, d3);
    const Vec even2 = d4 - d2, odd2 = d3 - d1;
    d[0] = Vec::fma(four, d0, Vec::fma(minus_five, d2, d4));
    d[1] = even + odd;
    d[2] = even - odd;
    d[3] = Vec::fma(two, odd2, even2);
    d[4] = Vec::fma(minus_two, odd2, even2);
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

// GCC would rather read a value from memory once for each of its uses than keep it in a register.
inline Vec in_register(Vec x) {
  asm("" : "+v"(x.v));
  return x;
}

// Along h and w, one plane of a tile and one vector of channels: rows[e] + f * voxel holds voxel (e, f).
template <int MH, int MW, class S>
void input_plane(const S* const* rows, int64_t offset, int64_t voxel, Vec* to) {
  constexpr int ah = alpha_of<MH>, aw = alpha_of<MW>;
  Vec d[ah][aw];
#pragma GCC unroll 8
  for (int e = 0; e < ah; ++e) {
    const S* row = rows[e] + offset;
#pragma GCC unroll 8
    for (int f = 0; f < aw; ++f) d[e][f] = in_register(Vec::load(row + f * voxel));
    input_transform<MW>(d[e]);
  }
#pragma GCC unroll 8
  for (int f = 0; f < aw; ++f) {
    Vec column[ah];
#pragma GCC unroll 8
    for (int e = 0; e < ah; ++e) column[e] = d[e][f];
    input_transform<MH>(column);
#pragma GCC unroll 8
    for (int e = 0; e < ah; ++e) to[e * aw + f] = column[e];
  }
}

// Along d, from [alpha][inner] planes to the tile's products.
template <int M>
void input_along_d(const Vec* planes, int64_t inner, float* v) {
  constexpr int alpha = alpha_of<M>;
  for (int64_t q = 0; q < inner; ++q) {
    Vec d[alpha];
#pragma GCC unroll 8
    for (int a = 0; a < alpha; ++a) d[a] = in_register(planes[a * inner + q]);
    input_transform<M>(d);
#pragma GCC unroll 8
    for (int a = 0; a < alpha; ++a) d[a].store(v + (a * inner + q) * Vec::width);
  }
}

template <class S>
using InputPlane = void (*)(const S* const*, int64_t, int64_t, Vec*);

// Row and column of a table over the tile sizes 1, 2 and 4.
inline int64_t index_of(int64_t m) { return m / 2; }

template <class S>
InputPlane<S> input_plane_of(int64_t m_h, int64_t m_w) {
  static constexpr InputPlane<S> planes[3][3] = {{input_plane<1, 1>, input_plane<1, 2>, input_plane<1, 4>},
                                                 {input_plane<2, 1>, input_plane<2, 2>, input_plane<2, 4>},
                                                 {input_plane<4, 1>, input_plane<4, 2>, input_plane<4, 4>}};
  return planes[index_of(m_h)][index_of(m_w)];
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
  const auto plane = input_plane_of<S>(height.m, width.m);
  const auto edge_plane = input_plane_of<float>(height.m, width.m);
  const auto along_d = depth.m == 4 ? input_along_d<4> : input_along_d<2>;
  Vec buffer[largest_tile], edge[36];
  int64_t row_voxels[36];  // of fused inputs: the first voxel of a row, -1 outside
  const S* rows[36];       // null outside
  const float* edge_rows[6];
  for (int64_t e = 0; e < ah; ++e) edge_rows[e] = reinterpret_cast<const float*>(edge + e * aw);
  for (int64_t t = first; t < first + count; ++t) {
    const TilePosition at = position_of(plan, t);
    const int64_t i0 = at.d + depth.first, j0 = at.h + height.first, l0 = at.w + width.first;
    const int64_t begin = std::max<int64_t>(0, -l0), end = std::min(aw, width.input - l0);
    for (int64_t a = 0; a < ad; ++a) {
      for (int64_t e = 0; e < ah; ++e) {
        const int64_t i = i0 + a, j = j0 + e;
        const bool inside = i >= 0 && i < depth.input && j >= 0 && j < height.input && begin < end;
        if (plan.loads_inputs) {
          row_voxels[a * ah + e] = !inside ? -1 : (i * height.input + j) * width.input;
          continue;
        }
        rows[a * ah + e] =
            !inside ? nullptr
                    : static_cast<const S*>(plan.x) +
                          (((at.n * depth.input + i) * height.input + j) * width.input + l0) * voxel +
                          group * plan.channels;
      }
    }
    const bool whole = !plan.loads_inputs && begin == 0 && end == aw && i0 >= 0 && i0 + ad <= depth.input &&
                       j0 >= 0 && j0 + ah <= height.input;
    for (int64_t c = 0; c < plan.channels; c += Vec::width, v += plan.v_step) {
      const int64_t lanes = std::min(Vec::width, plan.channels - c);
      Vec* planes = depth.m == 1 ? reinterpret_cast<Vec*>(v) : buffer;
      for (int64_t a = 0; a < ad; ++a) {
        for (int64_t q = 0; q < ah * aw; ++q) __builtin_prefetch(v + (a * ah * aw + q) * Vec::width, 1);
        if (whole && lanes == Vec::width) {
          plane(rows + a * ah, c, voxel, planes + a * ah * aw);
          continue;
        }
        if (plan.loads_inputs) {
          const InputVector<Vec, S> inputs(plan.inputs, at.n, depth.input * height.input * width.input,
                                           group * plan.channels + c, lanes);
          for (int64_t e = 0; e < ah; ++e) {
            const int64_t row = row_voxels[a * ah + e];
            for (int64_t f = 0; f < aw; ++f) {
              const bool inside = row >= 0 && f >= begin && f < end;
              edge[e * aw + f] = inside ? inputs.at(row + l0 + f) : Vec::zero();
            }
          }
          edge_plane(edge_rows, 0, Vec::width, planes + a * ah * aw);
          continue;
        }
        for (int64_t e = 0; e < ah; ++e) {
          const S* row = rows[a * ah + e];
          for (int64_t f = 0; f < aw; ++f) {
            const bool inside = row != nullptr && f >= begin && f < end;
            edge[e * aw + f] = inside ? Vec::load(row + f * voxel + c, lanes) : Vec::zero();
          }
        }
        edge_plane(edge_rows, 0, Vec::width, planes + a * ah * aw);
      }
      if (depth.m != 1) along_d(planes, ah * aw, v);
    }
  }
}

// Along h and w, one plane of products of a tile for one vector of filters, k_block floats apart.
template <int MH, int MW>
void output_plane(const float* m, int64_t k_block, float* z) {
  constexpr int ah = alpha_of<MH>, aw = alpha_of<MW>;
  Vec d[MH][aw];
#pragma GCC unroll 8
  for (int f = 0; f < aw; ++f) {
    Vec column[ah];
#pragma GCC unroll 8
    for (int e = 0; e < ah; ++e) column[e] = in_register(Vec::load(m + (e * aw + f) * k_block));
    output_transform<MH>(column);
#pragma GCC unroll 8
    for (int e = 0; e < MH; ++e) d[e][f] = column[e];
  }
#pragma GCC unroll 8
  for (int e = 0; e < MH; ++e) {
    output_transform<MW>(d[e]);
#pragma GCC unroll 8
    for (int f = 0; f < MW; ++f) d[e][f].store(z + (e * MW + f) * Vec::width);
  }
}

using OutputPlane = void (*)(const float*, int64_t, float*);

void winograd_output_plane(const Winograd& plan, int64_t a, int64_t k_begin, int64_t k_end, int64_t count,
                           const float* m, float* z) {
  const auto& [depth, height, width] = plan.axes;
  static constexpr OutputPlane planes[3][3] = {{output_plane<1, 1>, output_plane<1, 2>, output_plane<1, 4>},
                                               {output_plane<2, 1>, output_plane<2, 2>, output_plane<2, 4>},
                                               {output_plane<4, 1>, output_plane<4, 2>, output_plane<4, 4>}};
  const auto plane = planes[index_of(height.m)][index_of(width.m)];
  z += a * height.m * width.m * Vec::width + k_begin * (plan.k_block / Vec::width) * plan.z_step;
  for (int64_t t = 0; t < count; ++t, z += plan.k_padded / Vec::width * plan.z_step) {
    float* to = z;
    for (int64_t block = k_begin; block < k_end; ++block, m += plan.m_step) {
      for (int64_t k = 0; k < plan.k_block; k += Vec::width, to += plan.z_step)
        plane(m + k, plan.k_block, to);
    }
  }
}

// Along d, one row of outputs: from [alpha][m_h][m_w] to the voxels that exist.
template <int M, class S>
void output_along_d(const float* z, int64_t inner, Vec bias, int64_t d_count, int64_t w_count, int64_t lanes,
                    S* y, int64_t y_plane, int64_t voxel) {
  constexpr int alpha = alpha_of<M>;
  for (int64_t f = 0; f < w_count; ++f, z += Vec::width, y += voxel) {
    Vec d[alpha];
#pragma GCC unroll 8
    for (int a = 0; a < alpha; ++a) d[a] = in_register(Vec::load(z + a * inner * Vec::width));
    output_transform<M>(d);
    if (d_count == M && lanes == Vec::width) {
#pragma GCC unroll 8
      for (int a = 0; a < M; ++a) (d[a] + bias).store(y + a * y_plane);
    } else {
#pragma GCC unroll 8
      for (int a = 0; a < M; ++a) {
        if (a < d_count) (d[a] + bias).store(y + a * y_plane, lanes);
      }
    }
  }
}

template <class S>
void winograd_output(const Winograd& plan, int64_t group, int64_t first, int64_t count, const float* z) {
  const auto& [depth, height, width] = plan.axes;
  const int64_t voxel = plan.groups * plan.filters;
  const int64_t y_row = width.output * voxel, y_plane = height.output * y_row;
  const auto along_d = depth.m == 4   ? output_along_d<4, S>
                       : depth.m == 2 ? output_along_d<2, S>
                                      : output_along_d<1, S>;
  const auto along_d_to_sums = depth.m == 4   ? output_along_d<4, float>
                               : depth.m == 2 ? output_along_d<2, float>
                                              : output_along_d<1, float>;
  const bool plain = plan.epilogue.empty();
  float sums[4 * 4 * Vec::width];  // of a row in each plane, where an epilogue follows
  const int64_t sums_row = width.m * Vec::width;
  for (int64_t t = first; t < first + count; ++t) {
    const TilePosition at = position_of(plan, t);
    const int64_t slot =
        at.n * plan.epilogue.slots + t / plan.block_tiles - at.n * plan.image_tiles() / plan.block_tiles;
    const int64_t d_count = std::min(depth.m, depth.output - at.d),
                  h_count = std::min(height.m, height.output - at.h);
    const int64_t w_count = std::min(width.m, width.output - at.w);
    const float* from = z + (t - first) * plan.k_padded / Vec::width * plan.z_step;
    for (int64_t k = 0; k < plan.filters; k += Vec::width, from += plan.z_step) {
      const int64_t lanes = std::min(Vec::width, plan.filters - k);
      const int64_t filter = group * plan.filters + k;
      const Vec bias = plan.bias == nullptr ? Vec::zero() : Vec::load(plan.bias + filter, lanes);
      for (int64_t e = 0; e < h_count; ++e) {
        const float* row = from + e * width.m * Vec::width;
        const int64_t offset =
            (at.n * depth.output + at.d) * y_plane + (at.h + e) * y_row + at.w * voxel + filter;
        if (plain) {
          along_d(row, height.m * width.m, bias, d_count, w_count, lanes, static_cast<S*>(plan.y) + offset,
                  y_plane, voxel);
          continue;
        }
        along_d_to_sums(row, height.m * width.m, Vec::zero(), d_count, w_count, Vec::width, sums, sums_row,
                        Vec::width);
        for (int64_t a = 0; a < d_count; ++a) {
          finish<Vec, S>(plan.epilogue, plan.bias,
                         {sums + a * sums_row, Vec::width, w_count, filter, lanes, plan.y,
                          offset + a * y_plane, voxel, slot, voxel});
        }
      }
    }
  }
}

// Channels whose products are summed in one register: the error of a sum grows with its length, so longer
// ones are sums of such sums.
constexpr int64_t summed_channels = 128;

// R tiles times V vectors of filters: m[r] = sum over c of v[r][c] * u[c], where v of a tile lies in vectors
// of channels, v_step floats apart. Meanwhile weights that are needed next come into the cache: `ahead`
// floats from u_next for each vector of u.
template <int R, int V>
void product(const float* v, int64_t v_tile, int64_t v_step, const float* u, const float* u_next,
             int64_t ahead, int64_t channels, float* m, int64_t m_tile) {
  for (int64_t first = 0; first < channels; first += summed_channels) {
    Vec sum[R][V];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      for (int i = 0; i < V; ++i) sum[r][i] = Vec::zero();
    }
    const int64_t end = std::min(first + summed_channels, channels);
    for (int64_t c = first; c < end; c += Vec::width, v += v_step) {
      // A pointer for every third tile: x86 addresses reach two more, and there are not registers for all.
      const float* tiles[(R + 2) / 3];
#pragma GCC unroll 16
      for (int r = 0; r < R; r += 3) {
        tiles[r / 3] = v + r * v_tile;
        asm("" : "+r"(tiles[r / 3]));
      }
      const int64_t lanes = std::min<int64_t>(Vec::width, end - c);
      for (int64_t j = 0; j < lanes; ++j) {
        Vec weight[V];
        for (int i = 0; i < V; ++i, u += Vec::width, u_next += ahead) {
          weight[i] = Vec::load(u);
          __builtin_prefetch(u_next);
        }
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const Vec value = Vec::broadcast(tiles[r / 3][r % 3 * v_tile + j]);
          for (int i = 0; i < V; ++i) sum[r][i] = Vec::fma(value, weight[i], sum[r][i]);
        }
      }
    }
    if (first > 0) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        for (int i = 0; i < V; ++i) sum[r][i] = Vec::load(m + r * m_tile + i * Vec::width) + sum[r][i];
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      for (int i = 0; i < V; ++i) sum[r][i].store(m + r * m_tile + i * Vec::width);
    }
  }
}

using Product = void (*)(const float*, int64_t, int64_t, const float*, const float*, int64_t, int64_t, float*,
                         int64_t);

template <int V, int... R>
Product product_of(int64_t rows, std::integer_sequence<int, R...>) {
  static constexpr Product products[] = {product<R + 1, V>...};
  return products[rows - 1];
}

void winograd_multiply(const Winograd& plan, int64_t group, int64_t a, int64_t k_begin, int64_t k_end,
                       int64_t count, const float* v, float* m) {
  const auto& [depth, height, width] = plan.axes;
  const int64_t plane = height.alpha() * width.alpha(), blocks = plan.k_padded / plan.k_block;
  const int64_t v_tile = plan.c_padded / Vec::width * plan.v_step, m_tile = (k_end - k_begin) * plan.m_step;
  const int64_t u_block = plan.channels * plan.k_block;
  // Tiles in groups of at most row_tile, as even as they can be; each fetches its share of the next weights.
  const int64_t groups = (count + row_tile - 1) / row_tile, most = (count + groups - 1) / groups;
  const int64_t ahead = (Vec::width + groups - 1) / groups;
  for (int64_t q = 0; q < plane; ++q) {
    const float* row = plan.weights + (group * plan.products() + a * plane + q) * blocks * u_block;
    for (int64_t block = k_begin; block < k_end; ++block) {
      const float* u = row + block * u_block;
      const float* u_next = block + 1 < k_end ? u + u_block : row + (blocks + k_begin) * u_block;
      for (int64_t t = 0; t < count; t += most, u_next += ahead * u_block / Vec::width) {
        const int64_t rows = std::min(most, count - t);
        const auto run = plan.k_block == Vec::width
                             ? product_of<1>(rows, std::make_integer_sequence<int, row_tile>{})
                             : product_of<2>(rows, std::make_integer_sequence<int, row_tile>{});
        run(v + t * v_tile + (a * plane + q) * Vec::width, v_tile, plan.v_step, u, u_next, ahead,
            plan.channels, m + t * m_tile + (block - k_begin) * plan.m_step + q * plan.k_block, m_tile);
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
void winograd_output_f32(const Winograd& plan, int64_t group, int64_t first, int64_t count, const float* z) {
  winograd_output<float>(plan, group, first, count, z);
}
void winograd_output_bf16(const Winograd& plan, int64_t group, int64_t first, int64_t count, const float* z) {
  winograd_output<bfloat16>(plan, group, first, count, z);
}

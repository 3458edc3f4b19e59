#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "isa/bfloat16.h"
#include "kernels/conv3d/amx_gradient.h"

#include "isa/amx_begin.h"

namespace volnet::conv3d::VOLNET_ISA {
namespace {

#include "isa/vec_avx512.h"
#include "kernels/conv3d/amx_tiles.h"

struct Range {
  int64_t n, d, h, planes, rows;  // first output and how many
};

Range range_of(const AmxGradient& plan, int64_t index) {
  const auto& [depth, height, width] = plan.axes;
  const int64_t ranges_h = (height.count + plan.range_rows - 1) / plan.range_rows;
  const int64_t ranges_d = (depth.count + plan.range_planes - 1) / plan.range_planes;
  Range range;
  range.h = index % ranges_h * plan.range_rows;
  range.d = index / ranges_h % ranges_d * plan.range_planes;
  range.n = index / (ranges_h * ranges_d);
  range.rows = std::min(plan.range_rows, height.count - range.h);
  range.planes = std::min(plan.range_planes, depth.count - range.d);
  return range;
}

// Where the positions of a plane of x lie in memory, in voxels from the start of the plane, for rows from h
// on; -1: outside.
void place_x(const AmxGradient& plan, int64_t h, int64_t* places) {
  const auto& [depth, height, width] = plan.axes;
  for (const int64_t residue_h : plan.height.residues) {
    for (const int64_t residue_w : plan.width.residues) {
      for (int64_t q = 0; q < plan.x_positions; ++q) {
        const int64_t j = height.stride * (h + q / plan.row + plan.height.first) + residue_h;
        const int64_t l = width.stride * (q % plan.row + plan.width.first) + residue_w;
        const bool inside = j >= 0 && j < height.input && l >= 0 && l < width.input;
        *places++ = inside ? j * width.input + l : -1;
      }
    }
  }
}

void place_dy(const AmxGradient& plan, int64_t h, int64_t rows, int64_t* places) {
  const int64_t width = plan.axes[2].count;
  for (int64_t q = 0; q < plan.dy_positions; ++q) {
    const int64_t r = q / plan.row, l = q % plan.row;
    places[q] = r < rows && l < width ? (h + r) * width + l : -1;
  }
}

// Two neighbouring positions, sixteen channels.
template <class S>
inline void load_pair(const S* plane, const int64_t* places, int64_t voxel, int64_t lanes, Vec& even,
                      Vec& odd) {
  even = places[0] < 0 ? Vec::zero() : Vec::load(plane + places[0] * voxel, lanes);
  odd = places[1] < 0 ? Vec::zero() : Vec::load(plane + places[1] * voxel, lanes);
}

// A plane of x, channels [c, c + count) of the volume, transposed.
template <int Parts, class S>
__attribute__((noinline)) void copy_x(const AmxGradient& plan, const S* plane, int64_t c, int64_t count,
                                      const int64_t* places, char* to) {
  const int64_t voxel = plan.groups * plan.channels;
  const auto phases = static_cast<int64_t>(plan.height.residues.size() * plan.width.residues.size());
  for (int64_t phase = 0; phase < phases; ++phase, to += plan.x_phase, places += plan.x_positions) {
    for (int64_t first = 0; first < plan.channel_tile * 32; first += 16) {
      const int64_t lanes = std::clamp<int64_t>(count - first, 0, 16);
      char* line = to + first * plan.x_line;
      if (lanes == 0) {
        for (int part = 0; part < Parts; ++part) {
          for (int64_t i = 0; i < 16; ++i) {
            std::memset(line + part * plan.x_part + i * plan.x_line, 0, static_cast<size_t>(plan.x_line));
          }
        }
        continue;
      }
      for (int64_t q = 0; q < plan.x_positions; q += 32, line += 64) {
        __m512i high[16], low[16];
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {
          Vec even, odd;
          load_pair(plane + c + first, places + q + 2 * i, voxel, lanes, even, odd);
          high[i] = split_pairs(even.v, odd.v);
          if constexpr (Parts == 2) low[i] = split_pairs(even.v, odd.v);
        }
        transpose(high);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) _mm512_store_si512(line + i * plan.x_line, high[i]);
        if constexpr (Parts == 2) {
          transpose(low);
#pragma GCC unroll 16
          for (int i = 0; i < 16; ++i) _mm512_store_si512(line + plan.x_part + i * plan.x_line, low[i]);
        }
      }
    }
  }
}

// A plane of dy, filters [k, k + count) of the volume, in pairs of positions; adds its sums to bias.
template <int Parts, class S>
__attribute__((noinline)) void copy_dy(const AmxGradient& plan, const S* plane, int64_t k, int64_t count,
                                       const int64_t* places, char* to, float* bias) {
  const int64_t voxel = plan.groups * plan.filters;
  for (int64_t first = 0; first < plan.filter_tile * 32; first += 16) {
    const int64_t lanes = std::clamp<int64_t>(count - first, 0, 16);
    Vec sum = Vec::zero();
    for (int64_t q = 0; q < plan.dy_positions; q += 2, to += 64) {
      Vec even, odd;
      load_pair(plane + k + first, places + q, voxel, lanes, even, odd);
      sum = sum + (even + odd);
      _mm512_store_si512(to, split_pairs(even.v, odd.v));
      if constexpr (Parts == 2) _mm512_store_si512(to + plan.dy_part, split_pairs(even.v, odd.v));
    }
    (Vec::load(bias + first) + sum).store(bias + first);
  }
}

// A block of sums [32][32]: channels by filters, over the positions of some planes.
struct Product {
  const char* x[AmxGradient::most_planes];   // of each plane: first channel, first position of the tap
  const char* dy[AmxGradient::most_planes];  // first filter
  int64_t planes, steps;
  int64_t x_line, x_part, dy_part;
  int64_t dy_half;  // bytes from sixteen filters to the next
  bool first;       // the sums start at zero
};

#define VOLNET_PRODUCTS(a, b)     \
  _tile_dpbf16ps(0, a, b);        \
  if constexpr (Filters == 2) {   \
    _tile_dpbf16ps(1, a, 7);      \
  }                               \
  if constexpr (Channels == 2) {  \
    _tile_dpbf16ps(2, 5, b);      \
    if constexpr (Filters == 2) { \
      _tile_dpbf16ps(3, 5, 7);    \
    }                             \
  }

template <int Parts, int Channels, int Filters>
__attribute__((noinline)) void multiply(const Product& p, Ahead& x_ahead, Ahead& dy_ahead, float* sums) {
  constexpr int64_t line = 64, sums_line = 32 * sizeof(float);
  const int64_t half = 16 * p.x_line;
  if (p.first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    VOLNET_TILE_LOAD(0, sums, sums_line);
    if constexpr (Filters == 2) VOLNET_TILE_LOAD(1, sums + 16, sums_line);
    if constexpr (Channels == 2) VOLNET_TILE_LOAD(2, sums + 16 * 32, sums_line);
    if constexpr (Channels == 2 && Filters == 2) VOLNET_TILE_LOAD(3, sums + 16 * 32 + 16, sums_line);
  }
  for (int64_t plane = 0; plane < p.planes; ++plane) {
    const char *x = p.x[plane], *dy = p.dy[plane];
    for (int64_t s = 0; s < p.steps; ++s, x += 64, dy += 1024) {
      x_ahead.step();
      dy_ahead.step();
      VOLNET_TILE_LOAD(4, x, p.x_line);
      if constexpr (Channels == 2) VOLNET_TILE_LOAD(5, x + half, p.x_line);
      if constexpr (Parts == 2) {
        VOLNET_TILE_LOAD(6, dy + p.dy_part, line);
        if constexpr (Filters == 2) VOLNET_TILE_LOAD(7, dy + p.dy_part + p.dy_half, line);
        VOLNET_PRODUCTS(4, 6)
      }
      VOLNET_TILE_LOAD(6, dy, line);
      if constexpr (Filters == 2) VOLNET_TILE_LOAD(7, dy + p.dy_half, line);
      VOLNET_PRODUCTS(4, 6)
      if constexpr (Parts == 2) {
        VOLNET_TILE_LOAD(4, x + p.x_part, p.x_line);
        if constexpr (Channels == 2) VOLNET_TILE_LOAD(5, x + p.x_part + half, p.x_line);
        VOLNET_PRODUCTS(4, 6)
      }
    }
  }
  VOLNET_TILE_STORE(0, sums, sums_line);
  VOLNET_TILE_STORE(1, sums + 16, sums_line);
  VOLNET_TILE_STORE(2, sums + 16 * 32, sums_line);
  VOLNET_TILE_STORE(3, sums + 16 * 32 + 16, sums_line);
}
#undef VOLNET_PRODUCTS

template <int Parts>
auto multiply_of(int64_t channels, int64_t filters) {
  if (channels > 16) return filters > 16 ? multiply<Parts, 2, 2> : multiply<Parts, 2, 1>;
  return filters > 16 ? multiply<Parts, 1, 2> : multiply<Parts, 1, 1>;
}

// The rows of a volume that outputs [h, h + rows) of planes [d, d + planes) of an image read.
Ahead rows_ahead(const void* volume, int64_t n, const Axis& depth, const Axis& height, int64_t line,
                 int64_t d, int64_t planes, int64_t h, int64_t rows) {
  const auto range = [](const Axis& axis, int64_t at, int64_t count) {
    const int64_t first = at * axis.stride + axis.taps.front().offset;
    const int64_t last = (at + count - 1) * axis.stride + axis.taps.back().offset;
    return std::pair{std::clamp<int64_t>(first, 0, axis.input), std::clamp<int64_t>(last + 1, 0, axis.input)};
  };
  const auto [d0, d1] = range(depth, d, planes);
  const auto [h0, h1] = range(height, h, rows);
  Ahead ahead;
  ahead.plane = static_cast<const char*>(volume) + ((n * depth.input + d0) * height.input + h0) * line;
  ahead.row = ahead.row_step = line;
  ahead.rows = h1 - h0;
  ahead.plane_step = height.input * line;
  ahead.planes = h1 > h0 ? d1 - d0 : 0;
  return ahead;
}

template <int Parts, class S>
void weight_gradient(const AmxGradient& plan, int64_t piece, void* scratch) {
  const auto& [depth, height, width] = plan.axes;
  const int64_t channel_tiles = (plan.channel_blocks + plan.channel_tile - 1) / plan.channel_tile;
  const int64_t filter_tiles = (plan.filter_blocks + plan.filter_tile - 1) / plan.filter_tile;
  const int64_t filter_first = piece % filter_tiles * plan.filter_tile;
  const int64_t channel_first = piece / filter_tiles % channel_tiles * plan.channel_tile;
  const int64_t group = piece / (filter_tiles * channel_tiles) % plan.groups;
  const int64_t range_index = piece / (filter_tiles * channel_tiles * plan.groups);
  const Range range = range_of(plan, range_index);
  const int64_t filter_end = std::min(filter_first + plan.filter_tile, plan.filter_blocks);
  const int64_t channel_end = std::min(channel_first + plan.channel_tile, plan.channel_blocks);

  const auto phases_w = static_cast<int64_t>(plan.width.residues.size());
  const auto phases = static_cast<int64_t>(plan.height.residues.size()) * phases_w;
  auto* x_places = static_cast<int64_t*>(scratch);
  int64_t* dy_places = x_places + phases * plan.x_positions;
  char* x_ring = static_cast<char*>(scratch) +
                 ((phases * plan.x_positions + plan.dy_positions) * int64_t{sizeof(int64_t)} + 63) / 64 * 64;
  char* dy_planes = x_ring + Parts * plan.x_part;

  float* partial = plan.partial + (range_index * plan.groups + group) * plan.taps * plan.channel_blocks *
                                      plan.filter_blocks * 1024;
  float bias[AmxGradient::most_filters] = {};
  const S* x = static_cast<const S*>(plan.x) +
               range.n * depth.input * height.input * width.input * plan.groups * plan.channels;
  const S* dy = static_cast<const S*>(plan.dy) +
                range.n * depth.count * height.count * width.count * plan.groups * plan.filters;
  const int64_t channel0 = group * plan.channels + channel_first * 32;
  const int64_t filter0 = group * plan.filters + filter_first * 32;
  const int64_t channels = std::min(plan.channel_tile * 32, plan.channels - channel_first * 32);
  const int64_t filters = std::min(plan.filter_tile * 32, plan.filters - filter_first * 32);

  // While the last piece of a range runs, the next range comes nearer.
  Ahead x_ahead, dy_ahead;
  if (filter_end == plan.filter_blocks && channel_end == plan.channel_blocks && group + 1 == plan.groups &&
      range_index + 1 < plan.ranges) {
    const Range next = range_of(plan, range_index + 1);
    const int64_t value = sizeof(S);
    x_ahead = rows_ahead(plan.x, next.n, depth, height, width.input * plan.groups * plan.channels * value,
                         next.d, next.planes, next.h, std::min(next.rows, plan.row_tile));
    Axis depth_dy, height_dy;
    depth_dy.input = depth.count;
    height_dy.input = height.count;
    depth_dy.taps = height_dy.taps = {{0, 0}};
    dy_ahead =
        rows_ahead(plan.dy, next.n, depth_dy, height_dy, width.count * plan.groups * plan.filters * value,
                   next.d, next.planes, next.h, std::min(next.rows, plan.row_tile));
    const int64_t steps = plan.taps * (filter_end - filter_first) * (channel_end - channel_first) *
                          range.planes * plan.steps * ((range.rows + plan.row_tile - 1) / plan.row_tile);
    x_ahead.spread(steps);
    dy_ahead.spread(steps);
  }
  configure_tiles();
  bool first = true;
  for (int64_t h = 0; h < range.rows; h += plan.row_tile) {
    place_x(plan, range.h + h, x_places);
    place_dy(plan, range.h + h, std::min(plan.row_tile, range.rows - h), dy_places);
    int64_t copied = 0;  // planes of x, from the first one that the range reads
    for (int64_t d = 0; d < range.planes; d += plan.plane_tile) {
      const int64_t planes = std::min(plan.plane_tile, range.planes - d);
      const int64_t x_first = (range.d + d) * depth.stride + depth.taps.front().offset;
      const int64_t reach = depth.taps.back().offset - depth.taps.front().offset;
      const int64_t window = (planes - 1) * depth.stride + reach + 1;
      for (copied = std::max(copied, d * depth.stride); copied < d * depth.stride + window; ++copied) {
        const int64_t i = x_first + copied - d * depth.stride;
        if (i < 0 || i >= depth.input) continue;
        copy_x<Parts>(plan, x + i * height.input * width.input * plan.groups * plan.channels, channel0,
                      channels, x_places, x_ring + copied % plan.planes * plan.x_plane);
      }
      for (int64_t plane = 0; plane < planes; ++plane) {
        copy_dy<Parts>(plan,
                       dy + (range.d + d + plane) * height.count * width.count * plan.groups * plan.filters,
                       filter0, filters, dy_places, dy_planes + plane * plan.dy_plane, bias);
      }
      Product p;
      p.steps = plan.steps;
      p.x_line = plan.x_line;
      p.x_part = plan.x_part;
      p.dy_part = plan.dy_part;
      p.dy_half = plan.dy_positions * 32;
      p.first = first;
      int64_t tap = 0;
      for (const Tap& tap_d : depth.taps) {
        for (const AmxAxis::Shift& shift_h : plan.height.shifts) {
          for (const AmxAxis::Shift& shift_w : plan.width.shifts) {
            const int64_t x_offset = (shift_h.phase * phases_w + shift_w.phase) * plan.x_phase +
                                     (shift_h.positions * plan.row + shift_w.positions) * 2;
            for (int64_t c = channel_first; c < channel_end; ++c) {
              for (int64_t k = filter_first; k < filter_end; ++k) {
                p.planes = 0;
                for (int64_t plane = 0; plane < planes; ++plane) {
                  const int64_t at = (d + plane) * depth.stride + tap_d.offset - depth.taps.front().offset;
                  const int64_t i = range.d * depth.stride + depth.taps.front().offset + at;
                  if (i < 0 || i >= depth.input) continue;
                  p.x[p.planes] = x_ring + at % plan.planes * plan.x_plane + x_offset +
                                  (c - channel_first) * 32 * plan.x_line;
                  p.dy[p.planes++] = dy_planes + plane * plan.dy_plane + (k - filter_first) * 2 * p.dy_half;
                }
                if (p.planes == 0 && !first) continue;
                const auto multiply = multiply_of<Parts>(plan.channels - c * 32, plan.filters - k * 32);
                multiply(p, x_ahead, dy_ahead,
                         partial + ((tap * plan.channel_blocks + c) * plan.filter_blocks + k) * 1024);
              }
            }
            ++tap;
          }
        }
      }
      first = false;
    }
  }
  _tile_release();
  if (channel_first == 0) {
    std::memcpy(
        plan.partial_bias + (range_index * plan.groups + group) * plan.filter_blocks * 32 + filter_first * 32,
        bias, static_cast<size_t>((filter_end - filter_first) * 32) * sizeof(float));
  }
}

}  // namespace

void weight_gradient_f32(const AmxGradient& plan, int64_t piece, void* scratch) {
  plan.parts == 2 ? weight_gradient<2, float>(plan, piece, scratch)
                  : weight_gradient<1, float>(plan, piece, scratch);
}
void weight_gradient_bf16(const AmxGradient& plan, int64_t piece, void* scratch) {
  weight_gradient<1, bfloat16>(plan, piece, scratch);
}

}  // namespace volnet::conv3d::VOLNET_ISA

#include "isa/amx_end.h"

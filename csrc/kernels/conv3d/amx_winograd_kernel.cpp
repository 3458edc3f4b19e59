#include <immintrin.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <utility>

#include "isa/bfloat16.h"
#include "kernels/conv3d/amx_winograd.h"

#include "isa/amx_begin.h"

namespace volnet::conv3d::VOLNET_ISA {
namespace {

#include "isa/vec_avx512.h"
#include "kernels/conv3d/epilogue_body.h"
#include "kernels/conv3d/input_body.h"

#include "kernels/conv3d/amx_tiles.h"
#include "kernels/conv3d/amx_volumes.h"

constexpr int64_t frequencies = 16, tile_bytes = 1024, frequency_bytes = 2 * tile_bytes;
constexpr int64_t tap_bytes = 4 * tile_bytes;  // weights of a tap, of 32 channels and 32 filters

struct Box {
  int64_t n, group;
  int64_t d, h, w;                     // first plane of outputs, first tiles
  int64_t depth, height, width;        // planes of outputs, tiles
  int64_t filters_begin, filters_end;  // blocks
  int64_t slot;                        // of the statistics
};

Box box_of(const AmxWinograd& plan, int64_t piece) {
  const auto take = [&piece](int64_t size, int64_t tile) {
    const int64_t count = (size + tile - 1) / tile, index = piece % count;
    piece /= count;
    return index;
  };
  const int64_t depth = plan.call.axes[0].count;
  Box box;
  box.slot = piece % (plan.call.batch * plan.call.epilogue.slots);
  box.w = take(plan.tiles_w, plan.width_tile) * plan.width_tile;
  box.h = take(plan.tiles_h, plan.height_tile) * plan.height_tile;
  box.d = take(depth, plan.depth_tile) * plan.depth_tile;
  box.n = take(plan.call.batch, 1);
  box.filters_begin = take(plan.filter_blocks, plan.filter_tile) * plan.filter_tile;
  box.group = piece;
  box.width = std::min(plan.width_tile, plan.tiles_w - box.w);
  box.height = std::min(plan.height_tile, plan.tiles_h - box.h);
  box.depth = std::min(plan.depth_tile, depth - box.d);
  box.filters_end = std::min(box.filters_begin + plan.filter_tile, plan.filter_blocks);
  return box;
}

// The input of `count` planes from the p-th of the box on, to be fetched ahead.
Ahead planes_ahead(const AmxWinograd& plan, const Box& box, int64_t p, int64_t count) {
  const auto& [depth, height, width] = plan.call.axes;
  const int64_t i = box.d + depth.taps.front().offset + p;
  const auto inside = [&](int64_t at) { return std::clamp<int64_t>(at, 0, depth.input); };
  return input_ahead<float>(plan.call, box.n, box.group, {inside(i), inside(i + count)},
                            input_range(height, 2 * box.h, 2 * box.height),
                            input_range(width, 2 * box.w, 2 * box.width));
}

// NaN as the one that rounding by an addition does not carry over into zero (0x33: both kinds of NaN become
// it).
inline __m512 quieted(__m512 x) { return _mm512_fixupimm_ps(x, x, _mm512_set1_epi32(0x33), 0); }

// Row j of plane i, `voxels` voxels from l on, to [voxel][32 channels], zero outside the volume.
void copy_row(const Convolution& call, const Inputs& inputs, const Box& box, int64_t block, int64_t i,
              int64_t j, int64_t l, int64_t voxels, float* to) {
  const auto& [depth, height, width] = call.axes;
  const int64_t begin = j < 0 || j >= height.input ? voxels : std::clamp<int64_t>(-l, 0, voxels);
  const int64_t end = std::clamp<int64_t>(width.input - l, begin, voxels);
  std::memset(to, 0, static_cast<size_t>(begin) * 32 * sizeof(float));
  std::memset(to + end * 32, 0, static_cast<size_t>(voxels - end) * 32 * sizeof(float));
  if (begin == end) return;
  const int64_t volume = depth.input * height.input * width.input;
  const int64_t voxel = (i * height.input + j) * width.input + l;
  const int64_t channels = std::min<int64_t>(32, call.channels - block * 32);
  const int64_t first = box.group * call.channels + block * 32;
  to += begin * 32;
  if (!call.loads_inputs && channels == 32) {
    const int64_t step = call.groups * call.channels;
    const auto* from = static_cast<const float*>(call.x) + (box.n * volume + voxel + begin) * step + first;
    for (int64_t v = begin; v < end; ++v, from += step, to += 32) {
      _mm512_store_ps(to, quieted(_mm512_loadu_ps(from)));
      _mm512_store_ps(to + 16, quieted(_mm512_loadu_ps(from + 16)));
    }
    return;
  }
  for (int64_t half = 0; half < 2; ++half) {
    const int64_t lanes = std::clamp<int64_t>(channels - half * 16, 0, 16);
    float* lane = to + half * 16;
    if (lanes == 0) {
      for (int64_t v = begin; v < end; ++v, lane += 32) _mm512_store_ps(lane, _mm512_setzero_ps());
      continue;
    }
    const InputVector<Vec, float> vector(inputs, box.n, volume, first + half * 16, lanes);
    for (int64_t v = begin; v < end; ++v, lane += 32) _mm512_store_ps(lane, quieted(vector.at(voxel + v).v));
  }
}

// 32 values to their two parts, in pairs of lanes i of a and b.
inline void store_parts(__m512 a, __m512 b, char* to) {
  const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  __m512i x = _mm512_add_epi32(_mm512_castps_si512(a), half),
          y = _mm512_add_epi32(_mm512_castps_si512(b), half);
  _mm512_store_si512(to, _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(x, 16), y));
  a = _mm512_sub_ps(a, _mm512_castsi512_ps(_mm512_and_si512(x, upper)));
  b = _mm512_sub_ps(b, _mm512_castsi512_ps(_mm512_and_si512(y, upper)));
  x = _mm512_add_epi32(_mm512_castps_si512(a), half);
  y = _mm512_add_epi32(_mm512_castps_si512(b), half);
  _mm512_store_si512(to + tile_bytes, _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(x, 16), y));
}

// Frequencies [Row][0..4) of a row of tiles: a and b are the two rows of input that B^T's row `Row` takes.
template <int Row>
inline void transform_row(const AmxWinograd& plan, const float* a, const float* b, int64_t tile,
                          int64_t tiles, char* plane) {
  __m512 t[4][2];  // columns of the tile, halves of the channels
#define VOLNET_COLUMN(to, from)                                         \
  for (int half = 0; half < 2; ++half) {                                \
    const __m512 x = _mm512_load_ps(a + (from) * 32 + half * 16);       \
    const __m512 y = _mm512_load_ps(b + (from) * 32 + half * 16);       \
    t[to][half] = Row == 1 ? _mm512_add_ps(x, y) : _mm512_sub_ps(x, y); \
  }
#pragma GCC unroll 16
  VOLNET_COLUMN(0, 0)
#pragma GCC unroll 16
  VOLNET_COLUMN(1, 1)
  const int64_t step = plan.channel_blocks * AmxWinograd::v_block;
  for (int64_t i = 0; i < tiles; ++i, ++tile, a += 64, b += 64) {
    char* to = plane + tile / 16 * step + tile % 16 * 64 + Row * 4 * frequency_bytes;
#pragma GCC unroll 16
    VOLNET_COLUMN(2, 2)
#pragma GCC unroll 16
    VOLNET_COLUMN(3, 3)
    store_parts(_mm512_sub_ps(t[0][0], t[2][0]), _mm512_sub_ps(t[0][1], t[2][1]), to);
    store_parts(_mm512_add_ps(t[1][0], t[2][0]), _mm512_add_ps(t[1][1], t[2][1]), to + frequency_bytes);
    store_parts(_mm512_sub_ps(t[2][0], t[1][0]), _mm512_sub_ps(t[2][1], t[1][1]), to + 2 * frequency_bytes);
    store_parts(_mm512_sub_ps(t[1][0], t[3][0]), _mm512_sub_ps(t[1][1], t[3][1]), to + 3 * frequency_bytes);
    t[0][0] = t[2][0];
    t[0][1] = t[2][1];
    t[1][0] = t[3][0];
    t[1][1] = t[3][1];
  }
#undef VOLNET_COLUMN
}

// V of plane p of the box, to its place in the ring.
__attribute__((noinline)) void transform_input(const AmxWinograd& plan, const Inputs& inputs, const Box& box,
                                               int64_t p, float* rows, char* ring) {
  const auto& [depth, height, width] = plan.call.axes;
  char* plane = ring + p % plan.planes * plan.plane_size();
  const int64_t i = box.d + depth.taps.front().offset + p;
  if (i < 0 || i >= depth.input) {
    std::memset(plane, 0, static_cast<size_t>(plan.plane_size()));
    return;
  }
  const int64_t voxels = 2 * box.width + 2, row_size = voxels * 32;
  const int64_t j = 2 * box.h + height.taps.front().offset, l = 2 * box.w + width.taps.front().offset;
  const auto row = [&](int64_t r) { return rows + r % 4 * row_size; };
  for (int64_t block = 0; block < plan.channel_blocks; ++block, plane += AmxWinograd::v_block) {
    int64_t loaded = 0;
    for (int64_t h = 0; h < box.height; ++h) {
      for (; loaded < 2 * h + 4; ++loaded) {
        copy_row(plan.call, inputs, box, block, i, j + loaded, l, voxels, row(loaded));
      }
      const float *x0 = row(2 * h), *x1 = row(2 * h + 1), *x2 = row(2 * h + 2), *x3 = row(2 * h + 3);
      const int64_t tile = h * box.width;
      transform_row<0>(plan, x0, x2, tile, box.width, plane);
      transform_row<1>(plan, x1, x2, tile, box.width, plane);
      transform_row<2>(plan, x2, x1, tile, box.width, plane);
      transform_row<3>(plan, x1, x3, tile, box.width, plane);
    }
  }
}

// Two blocks of tiles: where V of their taps begins, those that at least one of them has input for.
struct Pair {
  const char *v0[3], *v1[3];
  int64_t taps, first;
};
static_assert(sizeof(Pair) == 64);  // as lay_out of amx_winograd.cpp has it

// Products of tiles that were begun behind a mispredicted branch run to their end, which costs more than all
// else here. So there are few branches and their pattern is short: the taps and the blocks of channels that
// go `Together` are constants, and so are the cache lines of the next weights and of the next input that each
// tap fetches.
template <int Taps, int Together, int WeightLines, int InputLines>
__attribute__((noinline)) void multiply(const AmxWinograd& plan, const Pair& pair, int64_t frequency,
                                        const char* weights, const char* next_weights, const char* next_input,
                                        float* sums) {
  constexpr int64_t line = 64, sums_line = 32 * sizeof(float);
  const int64_t block_weights = static_cast<int64_t>(plan.call.axes[0].taps.size()) * tap_bytes;
  const char *v0[Taps], *v1[Taps];
#pragma GCC unroll 16
  for (int t = 0; t < Taps; ++t) {
    v0[t] = pair.v0[t] + frequency * frequency_bytes;
    v1[t] = pair.v1[t] + frequency * frequency_bytes;
  }
  weights += pair.first * tap_bytes;
  sums += frequency * 16 * 32;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const int64_t channels = plan.channel_blocks * AmxWinograd::v_block;
  for (int64_t at = 0; at < channels; at += Together * AmxWinograd::v_block) {
#pragma GCC unroll 16
    for (int step = 0; step < Together * Taps; ++step) {
      const int t = step % Taps, block = step / Taps;
      const char* const a = v0[t] + at + block * AmxWinograd::v_block;
      const char* const b = v1[t] + at + block * AmxWinograd::v_block;
      const char* const w = weights + t * tap_bytes;
      VOLNET_TILE_LOAD(4, a, line);
      VOLNET_TILE_LOAD(5, b, line);
      VOLNET_TILE_LOAD(6, w + 2048, line);
      VOLNET_TILE_LOAD(7, w + 3072, line);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
#pragma GCC unroll 64
      for (int i = 0; i < WeightLines; ++i) __builtin_prefetch(next_weights + i * 64, 0, 2);
      next_weights += WeightLines * 64;
      VOLNET_TILE_LOAD(6, w, line);
      VOLNET_TILE_LOAD(7, w + 1024, line);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
#pragma GCC unroll 64
      for (int i = 0; i < InputLines; ++i) __builtin_prefetch(next_input + i * 64, 0, 2);
      next_input += InputLines * 64;
      VOLNET_TILE_LOAD(4, a + tile_bytes, line);
      VOLNET_TILE_LOAD(5, b + tile_bytes, line);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      if (t == Taps - 1) weights += block_weights;
    }
  }
  constexpr int64_t m_block = AmxWinograd::m_block / static_cast<int64_t>(sizeof(float));
  VOLNET_TILE_STORE(0, sums, sums_line);
  VOLNET_TILE_STORE(1, sums + 16, sums_line);
  VOLNET_TILE_STORE(2, sums + m_block, sums_line);
  VOLNET_TILE_STORE(3, sums + m_block + 16, sums_line);
}

using MultiplyKernel = void (*)(const AmxWinograd&, const Pair&, int64_t frequency, const char* weights,
                                const char* next_weights, const char* next_input, float* sums);

// What a tap fetches, in cache lines.
struct Lines {
  int64_t weights, input;
};

template <int Taps, int Together>
MultiplyKernel multiply_for(const Lines& lines) {
  if (lines.weights == 32) return multiply<Taps, Together, 32, 2>;
  if (lines.weights == 16) return multiply<Taps, Together, 16, 2>;
  return lines.input <= 4 ? multiply<Taps, Together, 0, 4> : multiply<Taps, Together, 0, 8>;
}

template <int Taps>
MultiplyKernel multiply_for(int64_t channel_blocks, const Lines& lines) {
  if (channel_blocks % 4 == 0) return multiply_for<Taps, 4>(lines);
  if (channel_blocks % 2 == 0) return multiply_for<Taps, 2>(lines);
  return multiply_for<Taps, 1>(lines);
}

// The rows of the next input in chunks, one for each multiplication of a pair of blocks.
struct Chunks {
  Ahead rows;
  int64_t size = 0;  // bytes

  // How many there are.
  int64_t count() const { return (rows.row + size - 1) / size * rows.rows * rows.planes; }

  const char* next(const char* otherwise) {
    if (rows.planes == 0) return otherwise;
    const char* chunk = rows.plane + rows.row_index * rows.row_step + rows.at;
    rows.at += size;
    if (rows.at < rows.row) return chunk;
    rows.at = 0;
    if (++rows.row_index < rows.rows) return chunk;
    rows.row_index = 0;
    rows.plane += rows.plane_step;
    --rows.planes;
    return chunk;
  }
};

// A^T M A of `tiles` tiles: two rows of outputs, [2 * tiles][32] each.
void transform_outputs(const float* plane, int64_t tile, int64_t tiles, float* upper, float* lower) {
  constexpr int64_t floats = sizeof(float), block = AmxWinograd::m_block / floats, step = 16 * 32;
  for (int64_t i = 0; i < tiles; ++i, ++tile, upper += 64, lower += 64) {
    const float* m = plane + tile / 16 * block + tile % 16 * 32;
#pragma GCC unroll 16
    for (int half = 0; half < 2; ++half, m += 16) {
      __m512 s[2][4];
#pragma GCC unroll 16
      for (int j = 0; j < 4; ++j) {
        const __m512 m0 = _mm512_load_ps(m + j * step), m1 = _mm512_load_ps(m + (4 + j) * step);
        const __m512 m2 = _mm512_load_ps(m + (8 + j) * step), m3 = _mm512_load_ps(m + (12 + j) * step);
        s[0][j] = _mm512_add_ps(_mm512_add_ps(m0, m1), m2);
        s[1][j] = _mm512_sub_ps(_mm512_sub_ps(m1, m2), m3);
      }
      _mm512_store_ps(upper + half * 16, _mm512_add_ps(_mm512_add_ps(s[0][0], s[0][1]), s[0][2]));
      _mm512_store_ps(upper + 32 + half * 16, _mm512_sub_ps(_mm512_sub_ps(s[0][1], s[0][2]), s[0][3]));
      _mm512_store_ps(lower + half * 16, _mm512_add_ps(_mm512_add_ps(s[1][0], s[1][1]), s[1][2]));
      _mm512_store_ps(lower + 32 + half * 16, _mm512_sub_ps(_mm512_sub_ps(s[1][1], s[1][2]), s[1][3]));
    }
  }
}

// The outputs of a plane of a box, of a block of filters.
__attribute__((noinline)) void store_plane(const AmxWinograd& plan, const Box& box, int64_t d, int64_t block,
                                           const float* sums, float* rows) {
  const auto& [depth, height, width] = plan.call.axes;
  const int64_t filter = box.group * plan.call.filters + block * 32;
  const int64_t filters = std::min<int64_t>(32, plan.call.filters - block * 32);
  const int64_t w = 2 * box.w, count = std::min(2 * box.width, width.count - w);
  float *upper = rows, *lower = rows + 2 * box.width * 32;
  for (int64_t i = 0; i < box.height; ++i) {
    transform_outputs(sums, i * box.width, box.width, upper, lower);
    const int64_t h = 2 * (box.h + i);
    store_outputs<float>(plan.call, plan.stream, upper, {box.n, d, h, w, count, filter, filters, box.slot});
    if (h + 1 == height.count) break;
    store_outputs<float>(plan.call, plan.stream, lower,
                         {box.n, d, h + 1, w, count, filter, filters, box.slot});
  }
}

}  // namespace

void winograd_f32(const AmxWinograd& plan, int64_t piece, void* scratch) {
  const Convolution& call = plan.call;
  const Axis& depth = call.axes[0];
  const Box box = box_of(plan, piece);
  const auto taps_d = static_cast<int64_t>(depth.taps.size());
  const int64_t reach = taps_d - 1, offset = depth.taps.front().offset;
  char* const base = static_cast<char*>(scratch);
  auto* const pairs = reinterpret_cast<Pair*>(base);
  auto* const rows = reinterpret_cast<float*>(base + plan.rows_at);
  auto* const outputs = reinterpret_cast<float*>(base + plan.outputs_at);
  auto* const sums = reinterpret_cast<float*>(base + plan.sums_at);
  char* const ring = base + plan.ring_at;
  constexpr int64_t m_block = AmxWinograd::m_block / static_cast<int64_t>(sizeof(float));

  Inputs inputs = call.inputs;
  if (!call.loads_inputs) {
    inputs = {};
    inputs[0].x = call.x;
    inputs[0].channels = call.groups * call.channels;
  }
  const int64_t frequency_weights = plan.frequency_weights();
  const char* const weights =
      static_cast<const char*>(call.weights) +
      (box.group * plan.filter_blocks + box.filters_begin) * frequencies * frequency_weights;
  const int64_t rounds = (box.filters_end - box.filters_begin) * frequencies;
  const auto exists = [&](int64_t p) { return box.d + offset + p >= 0 && box.d + offset + p < depth.input; };
  configure_tiles();
  int64_t transformed = 0;  // planes of the box
  for (int64_t d = 0; d < box.depth; d += plan.slab) {
    const int64_t slab = std::min(plan.slab, box.depth - d);
    for (transformed = std::max(transformed, d); transformed < d + slab + reach; ++transformed) {
      transform_input(plan, inputs, box, transformed, rows, ring);
    }
    const int64_t blocks = slab * plan.tile_blocks, pair_count = (blocks + 1) / 2;
    for (int64_t i = 0; i < pair_count; ++i) {
      // Of an odd number of blocks the last is its own neighbour.
      const int64_t first = 2 * i, second = std::min(first + 1, blocks - 1);
      const auto plane = [&](int64_t block, int64_t t) { return d + block / plan.tile_blocks + t; };
      const auto tiles = [&](int64_t block, int64_t t) {
        return ring + plane(block, t) % plan.planes * plan.plane_size() +
               block % plan.tile_blocks * plan.channel_blocks * AmxWinograd::v_block;
      };
      Pair& pair = pairs[i];
      pair.taps = 0;
      for (int64_t t = 0; t < taps_d; ++t) {
        // Where there is no input at all, one tap of zeros makes the sums.
        const bool needed = t == taps_d - 1 && pair.taps == 0;
        if (!needed && !exists(plane(first, t)) && !exists(plane(second, t))) continue;
        if (pair.taps == 0) pair.first = t;
        pair.v0[pair.taps] = tiles(first, t);
        pair.v1[pair.taps++] = tiles(second, t);
      }
    }

    Chunks input;
    if (d + slab < box.depth) {
      input.rows = planes_ahead(plan, box, transformed, plan.slab);
    } else if (piece + 1 < plan.pieces) {
      input.rows = planes_ahead(plan, box_of(plan, piece + 1), 0, plan.slab + reach);
    }
    const int64_t line_of_all_taps = taps_d * plan.channel_blocks * 64;
    Lines lines{0, 4};
    if (plan.fetches_weights) {
      lines = {pair_count <= 2 ? 32 : 16, 2};
    } else {
      input.size = lines.input * line_of_all_taps;
      if (input.count() > rounds * pair_count) lines.input = 8;
    }
    input.size = lines.input * line_of_all_taps;
    const std::array<MultiplyKernel, 3> kernels = {multiply_for<1>(plan.channel_blocks, lines),
                                                   multiply_for<2>(plan.channel_blocks, lines),
                                                   multiply_for<3>(plan.channel_blocks, lines)};
    for (int64_t round = 0; round < rounds; ++round) {
      const int64_t frequency = round % frequencies;
      const char* const w = weights + round * frequency_weights;
      const char* next = weights + (round + 1) % rounds * frequency_weights;
      for (int64_t i = 0; i < pair_count; ++i, next += lines.weights * line_of_all_taps) {
        kernels[static_cast<size_t>(pairs[i].taps - 1)](plan, pairs[i], frequency, w, next, input.next(w),
                                                        sums + 2 * i * m_block);
      }
      if (frequency + 1 < frequencies) continue;
      for (int64_t i = 0; i < slab; ++i) {
        store_plane(plan, box, box.d + d + i, box.filters_begin + round / frequencies,
                    sums + i * plan.tile_blocks * m_block, outputs);
      }
    }
  }
  _tile_release();
  if (plan.stream) _mm_sfence();
}

void pack_winograd_f32(const AmxWinograd& plan, const float* w, const WeightStrides& strides, int64_t piece,
                       void* packed) {
  const auto& [depth, height, width] = plan.call.axes;
  const int64_t block = piece % plan.channel_blocks, filters_at = piece / plan.channel_blocks;
  const int64_t filter0 = filters_at % plan.filter_blocks * 32, group = filters_at / plan.filter_blocks;
  const int64_t filters = std::min<int64_t>(32, plan.call.filters - filter0);
  const int64_t channels = std::min<int64_t>(32, plan.call.channels - block * 32);
  const auto taps_d = static_cast<int64_t>(depth.taps.size());
  const float* from = w + group * strides.group + filter0 * strides.filter + block * 32 * strides.channel;
  char* to = static_cast<char*>(packed) + filters_at * frequencies * plan.frequency_weights() +
             block * taps_d * tap_bytes;
  for (const Tap& tap_d : depth.taps) {
    for (int64_t half = 0; half < 2; ++half) {
      const int64_t count = std::clamp<int64_t>(filters - half * 16, 0, 16);
      for (int64_t l = 0; l < 16; ++l) {
        __m512 u[2][4][4];  // of the channels l and 16 + l
        for (int64_t odd = 0; odd < 2; ++odd) {
          const int64_t c = l + odd * 16;
          alignas(64) float taps[3][3][16] = {};
          for (int64_t k = 0; k < count && c < channels; ++k) {
            const float* filter =
                from + (half * 16 + k) * strides.filter + c * strides.channel + tap_d.index * strides.taps[0];
            for (size_t i = 0; i < 3; ++i) {
              for (size_t j = 0; j < 3; ++j) {
                taps[i][j][k] =
                    filter[height.taps[i].index * strides.taps[1] + width.taps[j].index * strides.taps[2]];
              }
            }
          }
          const __m512 half_of = _mm512_set1_ps(0.5f);
          __m512 g[4][3];
          for (int j = 0; j < 3; ++j) {
            const __m512 a = _mm512_load_ps(taps[0][j]), b = _mm512_load_ps(taps[1][j]);
            const __m512 c2 = _mm512_load_ps(taps[2][j]), sum = _mm512_add_ps(a, c2);
            g[0][j] = a;
            g[1][j] = _mm512_mul_ps(_mm512_add_ps(sum, b), half_of);
            g[2][j] = _mm512_mul_ps(_mm512_sub_ps(sum, b), half_of);
            g[3][j] = c2;
          }
          for (int i = 0; i < 4; ++i) {
            const __m512 sum = _mm512_add_ps(g[i][0], g[i][2]);
            u[odd][i][0] = g[i][0];
            u[odd][i][1] = _mm512_mul_ps(_mm512_add_ps(sum, g[i][1]), half_of);
            u[odd][i][2] = _mm512_mul_ps(_mm512_sub_ps(sum, g[i][1]), half_of);
            u[odd][i][3] = g[i][2];
          }
        }
        for (int64_t f = 0; f < frequencies; ++f) {
          char* line = to + f * plan.frequency_weights() + half * tile_bytes + l * 64;
          __m512 &even = u[0][f / 4][f % 4], &odd = u[1][f / 4][f % 4];
          _mm512_store_si512(line, split_pairs(even, odd));
          _mm512_store_si512(line + frequency_bytes, split_pairs(even, odd));
        }
      }
    }
    to += tap_bytes;
  }
}

}  // namespace volnet::conv3d::VOLNET_ISA

#include "isa/amx_end.h"

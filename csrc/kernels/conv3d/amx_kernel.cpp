#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "isa/bfloat16.h"
#include "kernels/conv3d/amx.h"

#include "isa/amx_begin.h"

namespace volnet::conv3d::VOLNET_ISA {
namespace {

#include "isa/vec_avx512.h"
#include "kernels/conv3d/epilogue_body.h"
#include "kernels/conv3d/input_body.h"

#include "kernels/conv3d/amx_tiles.h"
#include "kernels/conv3d/amx_volumes.h"

// The product of two blocks takes as long as bringing so many positions to scratch.
constexpr int64_t steps_a_product = 8;

// A block of sums: positions from `at` on times the filters of a block.
struct Block {
  int64_t at;                  // byte offset of the first position in a plane, first block of channels
  int64_t line;                // bytes from one position to the next
  int64_t part;                // bytes from one part to the next
  int64_t blocks, block_size;  // blocks of channels, and bytes from one to the next
  const char* const* planes;   // of the taps d
  int64_t taps;
  const int64_t* steps;
  int64_t step_count;
  const char* weights;    // of the first step
  int64_t tap_weights;    // bytes from one tap d to the next
  int64_t block_weights;  // and from one block of channels to the next
  bool first;             // the sums start at zero, else where they are
};

#define VOLNET_SUMS_LOAD(tile, from)         \
  if (b.first) {                             \
    _tile_zero(tile);                        \
  } else {                                   \
    VOLNET_TILE_LOAD(tile, from, sums_line); \
  }

// 32 positions, 32 filters: sums [32][32], in tiles 0 to 3.
template <int Parts>
__attribute__((noinline)) void block_32_by_32(const Block& b, Ahead& input, float* sums) {
  const int64_t line = b.line, half = 16 * b.line, weight_line = 64, sums_line = 32 * sizeof(float);
  VOLNET_SUMS_LOAD(0, sums)
  VOLNET_SUMS_LOAD(1, sums + 16)
  VOLNET_SUMS_LOAD(2, sums + 16 * 32)
  VOLNET_SUMS_LOAD(3, sums + 16 * 32 + 16)
  for (int64_t tap = 0; tap < b.blocks * b.taps; ++tap) {
    const int64_t block = tap / b.taps, d = tap - block * b.taps;
    const char* w = b.weights + block * b.block_weights + d * b.tap_weights;
    const char* plane = b.planes[d] + block * b.block_size + b.at;
    for (int64_t s = 0; s < b.step_count; ++s, w += Parts * 2048) {
      const char* a = plane + b.steps[s];
      input.step(steps_a_product);
      VOLNET_TILE_LOAD(4, a, line);
      VOLNET_TILE_LOAD(5, a + half, line);
      if constexpr (Parts == 2) {
        VOLNET_TILE_LOAD(6, w + 2048, weight_line);
        VOLNET_TILE_LOAD(7, w + 3072, weight_line);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      VOLNET_TILE_LOAD(6, w, weight_line);
      VOLNET_TILE_LOAD(7, w + 1024, weight_line);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      if constexpr (Parts == 2) {
        VOLNET_TILE_LOAD(4, a + b.part, line);
        VOLNET_TILE_LOAD(5, a + b.part + half, line);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
  VOLNET_TILE_STORE(0, sums, sums_line);
  VOLNET_TILE_STORE(1, sums + 16, sums_line);
  VOLNET_TILE_STORE(2, sums + 16 * 32, sums_line);
  VOLNET_TILE_STORE(3, sums + 16 * 32 + 16, sums_line);
}

// 64 positions, at most 16 filters: as many sums at once, so that the latency of a product stays hidden.
template <int Parts>
__attribute__((noinline)) void block_64_by_16(const Block& b, Ahead& input, float* sums) {
  const int64_t line = b.line, quarter = 16 * b.line, weight_line = 64, sums_line = 32 * sizeof(float);
  VOLNET_SUMS_LOAD(0, sums)
  VOLNET_SUMS_LOAD(1, sums + 16 * 32)
  VOLNET_SUMS_LOAD(2, sums + 32 * 32)
  VOLNET_SUMS_LOAD(3, sums + 48 * 32)
  for (int64_t tap = 0; tap < b.blocks * b.taps; ++tap) {
    const int64_t block = tap / b.taps, d = tap - block * b.taps;
    const char* w = b.weights + block * b.block_weights + d * b.tap_weights;
    const char* plane = b.planes[d] + block * b.block_size + b.at;
    for (int64_t s = 0; s < b.step_count; ++s, w += Parts * 1024) {
      const char* a = plane + b.steps[s];
      input.step(steps_a_product);
      VOLNET_TILE_LOAD(4, w, weight_line);
      if constexpr (Parts == 2) VOLNET_TILE_LOAD(5, w + 1024, weight_line);
#define VOLNET_QUARTER(sum)                                \
  VOLNET_TILE_LOAD(6, a + sum * quarter, line);            \
  _tile_dpbf16ps(sum, 6, 4);                               \
  if constexpr (Parts == 2) {                              \
    VOLNET_TILE_LOAD(7, a + b.part + sum * quarter, line); \
    _tile_dpbf16ps(sum, 6, 5);                             \
    _tile_dpbf16ps(sum, 7, 4);                             \
  }
      VOLNET_QUARTER(0)
      VOLNET_QUARTER(1)
      VOLNET_QUARTER(2)
      VOLNET_QUARTER(3)
#undef VOLNET_QUARTER
    }
  }
  VOLNET_TILE_STORE(0, sums, sums_line);
  VOLNET_TILE_STORE(1, sums + 16 * 32, sums_line);
  VOLNET_TILE_STORE(2, sums + 32 * 32, sums_line);
  VOLNET_TILE_STORE(3, sums + 48 * 32, sums_line);
}

// 32 channels of a position.
template <int Parts>
inline void store_position(__m512 a, __m512 b, char* to, int64_t part) {
  const __m512i first = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a));
  _mm512_storeu_si512(to, first);
  if constexpr (Parts == 2) {
    const __m512 a_high =
        _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(first)), 16));
    const __m512 b_high = _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(first, 1)), 16));
    _mm512_storeu_si512(to + part, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(_mm512_sub_ps(b, b_high),
                                                                                 _mm512_sub_ps(a, a_high))));
  }
}

// The first `lanes` channels of a position, at most 16.
template <int Parts>
inline void store_position(__m512 value, __mmask16 lanes, char* to, int64_t part) {
  __m512 rest;
  _mm256_mask_storeu_epi16(to, lanes, split(value, rest));
  if constexpr (Parts == 2) {
    _mm256_mask_storeu_epi16(to + part, lanes, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(rest)));
  }
}

// `count` voxels of a row to scratch, `lanes` channels each of which `channels` exist.
template <int Parts, class S>
void copy_voxels(const S* from, int64_t step, int64_t count, int64_t channels, int64_t lanes, char* to,
                 int64_t part, Ahead& ahead) {
  if constexpr (std::is_same_v<S, bfloat16>) {
    const __mmask32 mask = _bzhi_u32(~uint32_t{0}, static_cast<uint32_t>(channels));
    const __mmask32 stored = _bzhi_u32(~uint32_t{0}, static_cast<uint32_t>(lanes));
    for (int64_t i = 0; i < count; ++i, from += step, to += lanes * 2) {
      _mm512_mask_storeu_epi16(to, stored, _mm512_maskz_loadu_epi16(mask, from));
    }
  } else if (lanes == 32) {
    const __mmask16 low = Vec::lanes_below(std::min<int64_t>(channels, 16));
    const __mmask16 high = Vec::lanes_below(std::max<int64_t>(channels - 16, 0));
    for (int64_t i = 0; i < count; ++i, from += step, to += 64) {
      ahead.step();
      store_position<Parts>(_mm512_maskz_loadu_ps(low, from), _mm512_maskz_loadu_ps(high, from + 16), to,
                            part);
    }
  } else {
    const __mmask16 mask = Vec::lanes_below(channels), stored = Vec::lanes_below(lanes);
    for (int64_t i = 0; i < count; ++i, from += step, to += lanes * 2) {
      ahead.step();
      store_position<Parts>(_mm512_maskz_loadu_ps(mask, from), stored, to, part);
    }
  }
}

// The same from a plain volume, whose channels lie `step` apart.
template <int Parts, class S>
void copy_plain_voxels(const S* from, int64_t step, int64_t count, int64_t channels, int64_t lanes, char* to,
                       int64_t part) {
  for (int64_t w = 0; w < count; w += 16, from += 16) {
    const int64_t n = std::min<int64_t>(16, count - w);
    __m512i low[16], high[16];
    load_transposed(from, step, channels, n, low);
    if (lanes == 32) load_transposed(from + 16 * step, step, channels - 16, n, high);
    for (int64_t i = 0; i < n; ++i, to += lanes * 2) {
      const __m512 a = _mm512_castsi512_ps(low[i]);
      if (lanes == 32) {
        store_position<Parts>(a, _mm512_castsi512_ps(high[i]), to, part);
      } else {
        store_position<Parts>(a, Vec::lanes_below(lanes), to, part);
      }
    }
  }
}

// Positions of fused inputs: voxels from `voxel` on, `step` apart, channels [first, first + channels) of all.
template <int Parts, class S>
void copy_inputs(const Convolution& call, int64_t n, int64_t voxel, int64_t step, int64_t count,
                 int64_t first, int64_t channels, int64_t lanes, char* to, int64_t part) {
  const auto& [depth, height, width] = call.axes;
  const int64_t voxels = depth.input * height.input * width.input;
  const InputVector<Vec, S> low(call.inputs, n, voxels, first, std::min<int64_t>(channels, 16));
  if (channels <= 16) {
    for (int64_t i = 0; i < count; ++i, voxel += step, to += lanes * 2) {
      if (lanes == 32) {
        store_position<Parts>(low.at(voxel).v, _mm512_setzero_ps(), to, part);
      } else {
        store_position<Parts>(low.at(voxel).v, Vec::lanes_below(lanes), to, part);
      }
    }
    return;
  }
  const InputVector<Vec, S> high(call.inputs, n, voxels, first + 16, channels - 16);
  for (int64_t i = 0; i < count; ++i, voxel += step, to += 64) {
    store_position<Parts>(low.at(voxel).v, high.at(voxel).v, to, part);
  }
}

// A row of a volume of one channel, voxels [first, first + count), as bfloat16 parts; zeros where there are
// none, and everywhere for a row that is null.
template <int Parts, class S>
void split_row(const S* row, int64_t input, int64_t first, int64_t count, bfloat16* const* to) {
  const int64_t begin = row == nullptr ? count : std::clamp<int64_t>(-first, 0, count);
  const int64_t end = std::clamp<int64_t>(input - first, begin, count);
  for (int part = 0; part < Parts; ++part) {
    std::memset(to[part], 0, static_cast<size_t>(begin) * 2);
    std::memset(to[part] + end, 0, static_cast<size_t>(count - end) * 2);
  }
  if constexpr (std::is_same_v<S, bfloat16>) {
    if (end > begin) std::memcpy(to[0] + begin, row + first + begin, static_cast<size_t>(end - begin) * 2);
  } else {
    for (int64_t i = begin; i < end; i += 16) {
      const __mmask16 lanes = Vec::lanes_below(std::min<int64_t>(16, end - i));
      __m512 rest;
      _mm256_mask_storeu_epi16(to[0] + i, lanes, split(_mm512_maskz_loadu_ps(lanes, row + first + i), rest));
      if constexpr (Parts == 2) {
        _mm256_mask_storeu_epi16(to[1] + i, lanes, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(rest)));
      }
    }
  }
}

// The patches of a row of positions, the first of them at voxel (j, first) of a plane of one channel.
template <int Parts, class S>
void copy_patches(const Convolution& call, const S* plane, int64_t j, int64_t first, int64_t positions,
                  char* to, int64_t part_size) {
  const auto& [depth, height, width] = call.axes;
  const int64_t count = (positions - 1) * width.stride + patch_columns;
  alignas(64) bfloat16 rows[patch_rows][Parts][256 * patch_stride + patch_columns];
  for (int64_t r = 0; r < patch_rows; ++r) {
    bfloat16* parts[Parts];
    for (int part = 0; part < Parts; ++part) parts[part] = rows[r][part];
    const bool inside = j + r >= 0 && j + r < height.input;
    split_row<Parts>(inside ? plane + (j + r) * width.input : nullptr, width.input, first, count, parts);
  }
  for (int64_t i = 0; i < positions; ++i, to += 64) {
#pragma GCC unroll 16
    for (int part = 0; part < Parts; ++part) {
#pragma GCC unroll 16
      for (int r = 0; r < patch_rows; ++r) {
        const auto* from = reinterpret_cast<const __m128i*>(rows[r][part] + i * width.stride);
        _mm_store_si128(reinterpret_cast<__m128i*>(to + part * part_size + r * 16), _mm_loadu_si128(from));
      }
    }
  }
}

struct Box {
  int64_t n, group;
  int64_t d, h, w;                     // first output of the piece
  int64_t depth, height, width;        // outputs
  int64_t filters_begin, filters_end;  // blocks
  int64_t slot;                        // of the statistics
};

Box box_of(const Amx& plan, int64_t piece) {
  const auto& [depth, height, width] = plan.call.axes;
  const auto take = [&piece](int64_t size, int64_t tile) {
    const int64_t count = (size + tile - 1) / tile, index = piece % count;
    piece /= count;
    return index;
  };
  Box box;
  box.slot = piece % (plan.call.batch * plan.call.epilogue.slots);
  box.w = take(width.count, plan.width_tile) * plan.width_tile;
  box.h = take(height.count, plan.height_tile) * plan.height_tile;
  box.d = take(depth.count, plan.depth_tile) * plan.depth_tile;
  box.n = take(plan.call.batch, 1);
  box.filters_begin = take(plan.filter_blocks, plan.filter_tile) * plan.filter_tile;
  box.group = piece;
  box.width = std::min(plan.width_tile, width.count - box.w);
  box.height = std::min(plan.height_tile, height.count - box.h);
  box.depth = std::min(plan.depth_tile, depth.count - box.d);
  box.filters_end = std::min(box.filters_begin + plan.filter_tile, plan.filter_blocks);
  return box;
}

// Whether some output reads the plane `p` planes after the first one of the piece.
bool plane_is_read(const Axis& depth, int64_t p) {
  return std::any_of(depth.taps.begin(), depth.taps.end(), [&](const Tap& tap) {
    return (p - (tap.offset - depth.taps.front().offset)) % depth.stride == 0;
  });
}

// Plane p of the box to its place in the ring.
template <int Parts, class S>
__attribute__((noinline)) void copy_plane(const Amx& plan, const Box& box, int64_t p, char* ring,
                                          Ahead& ahead) {
  const Convolution& call = plan.call;
  const auto& [depth, height, width] = call.axes;
  const int64_t all_channels = call.groups * call.channels, position = plan.lanes * 2;
  const int64_t i = box.d * depth.stride + depth.taps.front().offset + p;
  if (i < 0 || i >= depth.input || !plane_is_read(depth, p)) return;
  const int64_t phases_w = static_cast<int64_t>(plan.width.residues.size());
  const int64_t positions = box.width + plan.width.reach;
  // What the last window of a row reads behind it meets zero weights; it must be a number all the same.
  const int64_t overhang = plan.lanes < 32 ? 64 : 0;
  char* plane = ring + p % plan.planes * plan.plane_size;
  for (size_t phase_h = 0; phase_h < plan.height.residues.size(); ++phase_h) {
    for (int64_t r = 0; r < box.height + plan.height.reach; ++r) {
      const int64_t j = height.stride * (box.h + r + plan.height.first) + plan.height.residues[phase_h];
      const bool inside = j >= 0 && j < height.input;
      for (int64_t phase_w = 0; phase_w < phases_w; ++phase_w) {
        const int64_t l0 =
            width.stride * (box.w + plan.width.first) + plan.width.residues[static_cast<size_t>(phase_w)];
        if (plan.patches) {
          const S* volume = static_cast<const S*>(call.x) + box.n * depth.input * height.input * width.input;
          copy_patches<Parts>(call, volume + i * height.input * width.input, j, l0, positions,
                              plane + (static_cast<int64_t>(phase_h) * phases_w + phase_w) * plan.phase_size +
                                  r * plan.row * position,
                              plan.part_size);
          continue;
        }
        // Positions whose voxel exists: 0 <= l0 + stride * position < input.
        int64_t begin = l0 >= 0 ? 0 : std::min((-l0 + width.stride - 1) / width.stride, positions);
        int64_t end =
            l0 >= width.input ? 0 : std::min((width.input - l0 + width.stride - 1) / width.stride, positions);
        if (!inside || end <= begin) begin = end = positions;
        // Elements from one voxel of the row to the next, and from one channel.
        const int64_t volume = depth.input * height.input * width.input;
        const int64_t voxel = plan.call.plain_x ? 1 : all_channels, channel = plan.call.plain_x ? volume : 1;
        const S* row = static_cast<const S*>(call.x) + box.n * volume * all_channels +
                       ((i * height.input + j) * width.input + l0) * voxel +
                       box.group * call.channels * channel;
        for (int64_t block = 0; block < plan.channel_blocks; ++block) {
          char* to = plane + block * plan.block_size +
                     (static_cast<int64_t>(phase_h) * phases_w + phase_w) * plan.phase_size +
                     r * plan.row * position;
          for (int part = 0; part < Parts; ++part) {
            std::memset(to + part * plan.part_size, 0, static_cast<size_t>(begin * position));
            std::memset(to + part * plan.part_size + end * position, 0,
                        static_cast<size_t>((positions - end) * position + overhang));
          }
          if (begin == end) continue;
          if (call.loads_inputs) {
            copy_inputs<Parts, S>(call, box.n,
                                  (i * height.input + j) * width.input + l0 + begin * width.stride,
                                  width.stride, end - begin, box.group * call.channels + block * plan.lanes,
                                  std::min(plan.lanes, call.channels - block * plan.lanes), plan.lanes,
                                  to + begin * position, plan.part_size);
            continue;
          }
          const S* from = row + begin * width.stride * voxel + block * plan.lanes * channel;
          const int64_t channels = std::min(plan.lanes, call.channels - block * plan.lanes);
          char* const first = to + begin * position;
          if (plan.call.plain_x) {
            copy_plain_voxels<Parts, S>(from, channel, end - begin, channels, plan.lanes, first,
                                        plan.part_size);
          } else {
            copy_voxels<Parts, S>(from, width.stride * voxel, end - begin, channels, plan.lanes, first,
                                  plan.part_size, ahead);
          }
        }
      }
    }
  }
}

// The input of `count` planes from p on, to be fetched ahead.
template <class S>
Ahead planes_ahead(const Amx& plan, const Box& box, int64_t p, int64_t count) {
  const auto& [depth, height, width] = plan.call.axes;
  const int64_t i = box.d * depth.stride + depth.taps.front().offset + p;
  const auto inside = [&](int64_t at) { return std::clamp<int64_t>(at, 0, depth.input); };
  return input_ahead<S>(plan.call, box.n, box.group, {inside(i), inside(i + count)},
                        input_range(height, box.h, box.height), input_range(width, box.w, box.width));
}

// Sums of `count` positions from q on to y, or, before they are there, fetches what will be added to them;
// positions between two rows are no outputs.
template <class S>
void finish_block(const Amx& plan, const Box& box, const float* sums, int64_t d, int64_t q, int64_t count,
                  int64_t filter, int64_t filters) {
  while (count > 0) {
    const int64_t h = q / plan.row, w = q % plan.row;
    const int64_t positions = std::min(count, plan.row - w);
    const Outputs outputs = {box.n,  d,       box.h + h, box.w + w, std::min(positions, box.width - w),
                             filter, filters, box.slot};
    if (sums == nullptr) {
      fetch_residual<S>(plan.call, outputs);
    } else {
      store_outputs<S>(plan.call, plan.stream, sums, outputs);
      sums += positions * 32;
    }
    q += positions;
    count -= positions;
  }
}

template <int Parts, class S>
void convolution(const Amx& plan, int64_t piece, void* scratch) {
  const Convolution& call = plan.call;
  const Axis& depth = call.axes[0];
  const Box box = box_of(plan, piece);
  const auto taps_d = static_cast<int64_t>(depth.taps.size());
  const auto steps = static_cast<int64_t>(plan.steps.size());
  const bool empty = taps_d == 0 || steps == 0;
  auto* planes = static_cast<const char**>(scratch);
  auto* sums = reinterpret_cast<float*>(static_cast<char*>(scratch) + (taps_d + 7) / 8 * 64);
  char* ring = static_cast<char*>(scratch) + plan.sums_size;

  const int64_t outputs = (box.height - 1) * plan.row + box.width;
  const int64_t filter_blocks = box.filters_end - box.filters_begin;
  const int64_t products =
      (outputs + 31) / 32 * filter_blocks * plan.channel_blocks * std::max<int64_t>(taps_d * steps, 1);
  configure_tiles();
  int64_t copied = 0;  // planes of the box
  for (int64_t d = 0; d < box.depth; ++d) {
    Ahead ahead;
    if (!empty) {
      const int64_t first = std::max(copied, d * depth.stride), end = d * depth.stride + plan.planes;
      if (d + 1 < box.depth) {
        ahead = planes_ahead<S>(plan, box, end, depth.stride);
      } else if (piece + 1 < plan.pieces) {
        ahead = planes_ahead<S>(plan, box_of(plan, piece + 1), 0, plan.planes);
      }
      // Bringing bfloat16 values costs no more than fetching would.
      const bool copies = std::is_same_v<S, float> && !call.plain_x;
      const int64_t positions = copies ? (end - first) * plan.plane_size / (plan.lanes * 2) : 0;
      ahead.spread(positions + products * steps_a_product);
      for (copied = first; copied < end; ++copied) copy_plane<Parts, S>(plan, box, copied, ring, ahead);
    }
    // Taps whose plane exists.
    int64_t taps = 0, first_tap = 0;
    for (int64_t t = 0; t < taps_d; ++t) {
      const int64_t offset = depth.taps[static_cast<size_t>(t)].offset;
      const int64_t i = (box.d + d) * depth.stride + offset;
      if (i < 0 || i >= depth.input) continue;
      if (taps == 0) first_tap = t;
      planes[taps++] =
          ring + (d * depth.stride + offset - depth.taps.front().offset) % plan.planes * plan.plane_size;
    }
    for (int64_t n = 0; n < filter_blocks; ++n) {
      // To and fro, so that the last weights are used again while they are in the cache.
      const int64_t block = d % 2 == 0 ? box.filters_begin + n : box.filters_end - 1 - n;
      const int64_t filters = std::min<int64_t>(32, call.filters - block * 32);
      const int64_t filter = box.group * call.filters + block * 32;
      const int64_t at_once = filters > 16 ? 32 : 64;
      Block b;
      b.line = plan.lanes * 2;
      b.part = plan.part_size;
      b.block_size = plan.block_size;
      b.planes = planes;
      b.taps = empty ? 0 : taps;
      b.steps = plan.steps.data();
      b.step_count = steps;
      b.tap_weights = steps * Parts * (filters > 16 ? 2048 : 1024);
      b.block_weights = taps_d * b.tap_weights;
      const char* weights =
          static_cast<const char*>(call.weights) +
          (box.group * plan.filter_blocks + block) * plan.channel_blocks * taps_d * steps * Parts * 2048 +
          first_tap * b.tap_weights;
      for (int64_t channels = 0; channels < plan.channel_blocks; channels += plan.channel_tile) {
        const bool last = channels + plan.channel_tile >= plan.channel_blocks;
        b.first = channels == 0;
        b.blocks = std::min(plan.channel_tile, plan.channel_blocks - channels);
        b.weights = weights + channels * b.block_weights;
        float* to = sums;
        for (int64_t q = 0; q < outputs; q += at_once) {
          const int64_t count = std::min(at_once, outputs - q);
          b.at = channels * plan.block_size + q * b.line;
          if (last && call.epilogue.residual != nullptr) {
            finish_block<S>(plan, box, nullptr, box.d + d, q, count, filter, filters);
          }
          filters > 16 ? block_32_by_32<Parts>(b, ahead, to) : block_64_by_16<Parts>(b, ahead, to);
          if (last) finish_block<S>(plan, box, to, box.d + d, q, count, filter, filters);
          if (plan.channel_tile < plan.channel_blocks) to += at_once * 32;
        }
      }
    }
  }
  _tile_release();
  if (plan.stream) _mm_sfence();
}

// Sixteen filters of one pair of lines of a tile; a tap that is null is zero.
template <class S>
inline void pack_line(const S* even, const S* odd, int64_t step, int64_t filters, int64_t parts, int64_t part,
                      char* to) {
  float values[2][16] = {};
  for (int64_t k = 0; even != nullptr && k < filters; ++k) values[0][k] = to_float(even[k * step]);
  for (int64_t k = 0; odd != nullptr && k < filters; ++k) values[1][k] = to_float(odd[k * step]);
  __m512 low = _mm512_loadu_ps(values[0]), high = _mm512_loadu_ps(values[1]);
  for (int64_t p = 0; p < parts; ++p, to += part) {
    _mm512_storeu_si512(to, split_pairs(low, high));
  }
}

template <class S>
void pack(const Amx& plan, const S* w, const WeightStrides& strides, int64_t piece, char* packed) {
  const auto& [depth, height, width] = plan.call.axes;
  const int64_t block = piece % plan.channel_blocks, filters_at = piece / plan.channel_blocks;
  const int64_t filter0 = filters_at % plan.filter_blocks * 32, group = filters_at / plan.filter_blocks;
  const int64_t filters = std::min<int64_t>(32, plan.call.filters - filter0);
  const int64_t halves = filters > 16 ? 2 : 1, part = halves * 1024;
  const int64_t channel0 = block * plan.lanes, channels = std::min(plan.lanes, plan.call.channels - channel0);
  const S* from = w + group * strides.group + filter0 * strides.filter + channel0 * strides.channel;
  const auto steps = static_cast<int64_t>(depth.taps.size() * plan.steps.size());
  char* to = packed + (filters_at * plan.channel_blocks * 2 + block * halves) * steps * plan.parts * 1024;
  const auto tap = [](const Axis& axis, int64_t t) -> const Tap* {
    return t >= 0 && t < static_cast<int64_t>(axis.taps.size()) ? &axis.taps[static_cast<size_t>(t)]
                                                                : nullptr;
  };
  for (const Tap& tap_d : depth.taps) {
    for (int64_t h = 0; h < static_cast<int64_t>(plan.height.shifts.size()); ++h) {
      for (const AmxWindow& window : plan.windows) {
        // The weights that meet value l of a line, or null.
        const auto line = [&](int64_t l) -> const S* {
          const int64_t c = plan.patches ? 0 : l % plan.lanes;
          const Tap* tap_h = tap(height, plan.patches ? h * patch_rows + l / patch_columns : h);
          const Tap* tap_w =
              tap(width, plan.patches ? l % patch_columns : window.taps[static_cast<size_t>(l / plan.lanes)]);
          if (tap_h == nullptr || tap_w == nullptr || c >= channels) return nullptr;
          return from + tap_d.index * strides.taps[0] + tap_h->index * strides.taps[1] +
                 tap_w->index * strides.taps[2] + c * strides.channel;
        };
        for (int64_t half = 0; half < halves; ++half) {
          for (int64_t l = 0; l < 32; l += 2) {
            const S *even = line(l), *odd = line(l + 1);
            const int64_t k = half * 16 * strides.filter;
            pack_line(even == nullptr ? even : even + k, odd == nullptr ? odd : odd + k, strides.filter,
                      std::min<int64_t>(16, filters - half * 16), plan.parts, part,
                      to + half * 1024 + l * 32);
          }
        }
        to += plan.parts * part;
      }
    }
  }
}

}  // namespace

void pack_f32(const Amx& plan, const void* w, const WeightStrides& strides, int64_t piece, void* packed) {
  pack(plan, static_cast<const float*>(w), strides, piece, static_cast<char*>(packed));
}
void pack_bf16(const Amx& plan, const void* w, const WeightStrides& strides, int64_t piece, void* packed) {
  pack(plan, static_cast<const bfloat16*>(w), strides, piece, static_cast<char*>(packed));
}
void convolution_f32(const Amx& plan, int64_t piece, void* scratch) {
  plan.parts == 2 ? convolution<2, float>(plan, piece, scratch) : convolution<1, float>(plan, piece, scratch);
}
void convolution_bf16(const Amx& plan, int64_t piece, void* scratch) {
  convolution<1, bfloat16>(plan, piece, scratch);
}

}  // namespace volnet::conv3d::VOLNET_ISA

#include "isa/amx_end.h"

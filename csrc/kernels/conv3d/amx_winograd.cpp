#include "kernels/conv3d/amx_winograd.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

namespace volnet::conv3d {
namespace {

// Of the second-level cache, what may hold scratch, and what scratch and weights that are read again.
constexpr int64_t cache = 7 << 18, kept = 5 << 18;
constexpr int64_t most_scratch = 3 << 20;  // of a worker

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t reach_of(const Axis& axis) { return axis.taps.back().offset - axis.taps.front().offset; }

// Sizes that follow from the box and the slab.
void lay_out(AmxWinograd& plan) {
  const Axis& depth = plan.call.axes[0];
  plan.planes = plan.slab + reach_of(depth);
  plan.tile_blocks = ceil_div(plan.height_tile * plan.width_tile, 16);
  const int64_t blocks = plan.slab * plan.tile_blocks, pairs = ceil_div(blocks, 2);
  plan.rows_at = pairs * 64;
  plan.outputs_at = plan.rows_at + 4 * (2 * plan.width_tile + 2) * 128;
  plan.sums_at = plan.outputs_at + 2 * 2 * plan.width_tile * 128;
  plan.ring_at = plan.sums_at + 2 * pairs * AmxWinograd::m_block;
  plan.scratch = plan.ring_at + plan.planes * plan.plane_size();
  plan.call.epilogue.slots = ceil_div(depth.count, plan.depth_tile) *
                             ceil_div(plan.tiles_h, plan.height_tile) *
                             ceil_div(plan.tiles_w, plan.width_tile);
  plan.pieces = plan.call.batch * plan.call.epilogue.slots * plan.call.groups *
                ceil_div(plan.filter_blocks, plan.filter_tile);
  plan.fetches_weights = plan.filter_tile * 16 * plan.frequency_weights() + plan.scratch > kept;
}

// `size` in 1, 2, 3, 4, 6, 8, 12 and 16 shares.
std::vector<int64_t> shares(int64_t size) {
  std::vector<int64_t> sizes;
  for (const int64_t count : {1, 2, 3, 4, 6, 8, 12, 16}) {
    const int64_t share = ceil_div(size, count);
    if (sizes.empty() || share < sizes.back()) sizes.push_back(share);
  }
  return sizes;
}

bool neighbours(const Axis& axis) {
  return axis.taps.size() == 3 && axis.taps[1].offset == axis.taps[0].offset + 1 &&
         axis.taps[2].offset == axis.taps[0].offset + 2;
}

bool dense(const Axis& axis) {
  return axis.stride == 1 && axis.write_step == 1 && axis.write_first == 0 && axis.count == axis.output;
}

}  // namespace

// Cycles of one core, measured: a product of two tiles of numbers (zeros are faster) takes 26, storing four
// tiles of sums 120; bringing 32 channels of a tile to V 220, and a voxel of them to the rows before that 10;
// 32 filters of a tile back 130; a byte from behind the second-level cache a tenth.
double amx_winograd_cost(const AmxWinograd& plan) {
  const Axis& depth = plan.call.axes[0];
  const auto taps = static_cast<int64_t>(depth.taps.size());
  const int64_t slabs = ceil_div(plan.depth_tile, plan.slab);
  const int64_t pairs = ceil_div(plan.slab * plan.tile_blocks, 2), tiles = plan.height_tile * plan.width_tile;
  const int64_t rounds = plan.filter_tile * 16;
  const int64_t products = rounds * pairs * (plan.channel_blocks * taps * 12 * 26 + 120);
  const int64_t fetched = plan.fetches_weights ? rounds * plan.frequency_weights() : 0;
  const int64_t overflow = std::max<int64_t>(plan.scratch - cache, 0) * plan.filter_tile;
  const int64_t voxels = (2 * plan.height_tile + 2) * (2 * plan.width_tile + 2);
  const int64_t inputs =
      (plan.depth_tile + reach_of(depth)) * plan.channel_blocks * (tiles * 220 + voxels * 10);
  const int64_t outputs = plan.depth_tile * tiles * plan.filter_tile * 130;
  return static_cast<double>(plan.pieces) *
         static_cast<double>(slabs * (products + (fetched + overflow) / 10) + inputs + outputs);
}

bool amx_winograd_serves(const Convolution& call) {
  const auto& [depth, height, width] = call.axes;
  const auto taps_d = static_cast<int64_t>(depth.taps.size());
  return call.channels > 16 && taps_d >= 1 && taps_d <= 3 && reach_of(depth) == taps_d - 1 &&
         neighbours(height) && neighbours(width) && std::all_of(call.axes.begin(), call.axes.end(), dense);
}

void plan_amx_winograd(const Convolution& call, int64_t workers, AmxWinograd& plan) {
  const auto& [depth, height, width] = call.axes;
  plan.call = call;
  plan.channel_blocks = ceil_div(call.channels, 32);
  plan.filter_blocks = ceil_div(call.filters, 32);
  plan.tiles_h = ceil_div(height.count, 2);
  plan.tiles_w = ceil_div(width.count, 2);

  double best = std::numeric_limits<double>::infinity();
  std::array<int64_t, 5> chosen{};
  for (const int64_t w : shares(plan.tiles_w)) {
    for (const int64_t h : shares(plan.tiles_h)) {
      for (const int64_t d : shares(depth.count)) {
        for (const int64_t slab : {1, 2, 4, 8}) {
          for (const int64_t split : {int64_t{1}, int64_t{2}, int64_t{4}, plan.filter_blocks}) {
            plan.width_tile = w;
            plan.height_tile = h;
            plan.depth_tile = d;
            plan.slab = std::min(slab, d);
            plan.filter_tile = ceil_div(plan.filter_blocks, split);
            lay_out(plan);
            if (plan.scratch > most_scratch && w * h * plan.slab > 16) continue;
            // Eight pieces a worker keep all of them busy to the end; every halving must be worth 5 %.
            const double missing = std::log2(
                std::max(1.0, 8.0 * static_cast<double>(workers) / static_cast<double>(plan.pieces)));
            const double score = amx_winograd_cost(plan) * (1.0 + 0.05 * missing);
            if (score < best) {
              best = score;
              chosen = {w, h, d, plan.slab, plan.filter_tile};
            }
          }
        }
      }
    }
  }
  plan.width_tile = chosen[0];
  plan.height_tile = chosen[1];
  plan.depth_tile = chosen[2];
  plan.slab = chosen[3];
  plan.filter_tile = chosen[4];
  lay_out(plan);

  // Larger than the caches, and in whole cache lines.
  constexpr int64_t large = int64_t{32} << 20;
  const int64_t filters = call.filters * static_cast<int64_t>(sizeof(float));
  const int64_t bytes = call.batch * depth.output * height.output * width.output * call.groups * filters;
  plan.stream = bytes > large && filters % 64 == 0 && reinterpret_cast<uintptr_t>(call.y) % 64 == 0;
}

int64_t amx_winograd_packed_size(const AmxWinograd& plan) {
  return plan.call.groups * plan.filter_blocks * 16 * plan.frequency_weights();
}

int64_t amx_winograd_packing_pieces(const AmxWinograd& plan) {
  return plan.call.groups * plan.filter_blocks * plan.channel_blocks;
}

}  // namespace volnet::conv3d

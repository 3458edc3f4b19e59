#include "kernels/conv3d/amx_gradient.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace volnet::conv3d {
namespace {

constexpr int64_t block = 32, block_values = block * block;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

int64_t reach_of(const Axis& axis) { return axis.taps.back().offset - axis.taps.front().offset; }

// Sizes that follow from the tile.
void lay_out(AmxGradient& plan) {
  const auto& [depth, height, width] = plan.axes;
  plan.planes = (plan.plane_tile - 1) * depth.stride + reach_of(depth) + 1;
  plan.row = width.count + plan.width.reach;
  plan.steps = ceil_div((plan.row_tile - 1) * plan.row + width.count, 32);
  plan.dy_positions = plan.steps * 32;
  plan.x_positions = round_up(plan.dy_positions + plan.height.reach * plan.row + plan.width.reach, 32);
  // An odd number of cache lines: the lines of a tile would share a few cache sets otherwise.
  plan.x_line = (plan.x_positions / 32 | 1) * 64;
  plan.x_phase = plan.channel_tile * block * plan.x_line;
  plan.x_plane =
      static_cast<int64_t>(plan.height.residues.size() * plan.width.residues.size()) * plan.x_phase;
  plan.x_part = plan.planes * plan.x_plane;
  plan.dy_plane = plan.filter_tile * block * plan.dy_positions * 2;
  plan.dy_part = plan.plane_tile * plan.dy_plane;
  plan.ranges =
      plan.batch * ceil_div(depth.count, plan.range_planes) * ceil_div(height.count, plan.range_rows);
  plan.pieces = plan.ranges * plan.groups * ceil_div(plan.channel_blocks, plan.channel_tile) *
                ceil_div(plan.filter_blocks, plan.filter_tile);
}

// Cycles of one core, measured: a product of two tiles takes 16, taking up and putting back a block of sums
// about 300, bringing 32 values to scratch 12 a part, and adding up a range a cycle for 8 bytes.
double cost(const AmxGradient& plan) {
  const auto& [depth, height, width] = plan.axes;
  const int64_t products = plan.parts == 2 ? 3 : 1;
  const int64_t row_tiles = ceil_div(plan.range_rows, plan.row_tile);
  const int64_t phases = static_cast<int64_t>(plan.height.residues.size() * plan.width.residues.size());
  const int64_t planes_x = (plan.range_planes - 1) * depth.stride + reach_of(depth) + 1;
  const int64_t copies = planes_x * phases * plan.x_positions * plan.channel_tile +
                         plan.range_planes * plan.dy_positions * plan.filter_tile;
  const int64_t sums =
      plan.taps * plan.channel_tile * plan.filter_tile *
      (plan.range_planes * plan.steps * products * 64 + ceil_div(plan.range_planes, plan.plane_tile) * 300);
  double range = static_cast<double>(row_tiles) *
                 (static_cast<double>(copies * 12 * plan.parts) + static_cast<double>(sums));
  constexpr int64_t cache = 5 << 18;
  if (plan.parts * (plan.x_part + plan.dy_part) > cache) range *= 1.5;
  return range * static_cast<double>(plan.pieces) +
         static_cast<double>(amx_gradient_partial(plan)) * sizeof(float) / 8;
}

std::vector<int64_t> tile_sizes(int64_t size) {
  std::vector<int64_t> sizes;
  for (int64_t power = 1; power < size; power *= 2) sizes.push_back(power);
  sizes.push_back(size);
  return sizes;
}

}  // namespace

bool plan_amx_gradient(int64_t parts, AmxGradient& plan) {
  const auto& [depth, height, width] = plan.axes;
  if (plan.batch == 0 || plan.channels < 4 || plan.filters < 4) return false;
  plan.parts = parts;
  plan.channel_blocks = ceil_div(plan.channels, block);
  plan.filter_blocks = ceil_div(plan.filters, block);
  plan.taps = static_cast<int64_t>(depth.taps.size() * height.taps.size() * width.taps.size());
  plan.height = phases_of(height);
  plan.width = phases_of(width);

  constexpr int64_t most_filters = AmxGradient::most_filters / block;
  constexpr int64_t wanted_pieces = 2 * 112, most_partial = int64_t{96} << 20;
  double best = std::numeric_limits<double>::infinity();
  AmxGradient chosen;
  for (const int64_t rows : tile_sizes(height.count)) {
    for (const int64_t range_rows : {rows, height.count}) {
      for (const int64_t range_planes : tile_sizes(depth.count)) {
        for (const int64_t planes : tile_sizes(std::min(range_planes, AmxGradient::most_planes))) {
          for (const int64_t channels : tile_sizes(plan.channel_blocks)) {
            for (const int64_t filters : tile_sizes(std::min(plan.filter_blocks, most_filters))) {
              plan.row_tile = rows;
              plan.range_rows = range_rows;
              plan.range_planes = range_planes;
              plan.plane_tile = planes;
              plan.channel_tile = channels;
              plan.filter_tile = filters;
              lay_out(plan);
              const bool smallest = range_rows == height.count && range_planes == depth.count;
              if (!smallest && amx_gradient_partial(plan) * 4 > most_partial) continue;
              const double missing = std::log2(
                  std::max(1.0, static_cast<double>(wanted_pieces) / static_cast<double>(plan.pieces)));
              const double score = cost(plan) * (1.0 + 0.05 * missing);
              if (score < best) {
                best = score;
                chosen = plan;
              }
            }
          }
        }
      }
    }
  }
  plan = chosen;
  return true;
}

int64_t amx_gradient_scratch(const AmxGradient& plan) {
  const int64_t places =
      static_cast<int64_t>(plan.height.residues.size() * plan.width.residues.size()) * plan.x_positions +
      plan.dy_positions;
  return round_up(places * static_cast<int64_t>(sizeof(int64_t)), 64) +
         plan.parts * (plan.x_part + plan.dy_part);
}

int64_t amx_gradient_partial(const AmxGradient& plan) {
  return plan.ranges * plan.groups * plan.taps * plan.channel_blocks * plan.filter_blocks * block_values;
}

int64_t amx_gradient_partial_bias(const AmxGradient& plan) {
  return plan.ranges * plan.groups * plan.filter_blocks * block;
}

void amx_gradient_sum(const AmxGradient& plan, int64_t piece, float* dw, float* db) {
  const int64_t filter_block = piece % plan.filter_blocks;
  const int64_t channel_block = piece / plan.filter_blocks % plan.channel_blocks;
  const int64_t group = piece / (plan.filter_blocks * plan.channel_blocks);
  const int64_t channels = std::min(block, plan.channels - channel_block * block);
  const int64_t filters = std::min(block, plan.filters - filter_block * block);
  const int64_t tap_step = plan.channel_blocks * plan.filter_blocks * block_values;
  const int64_t range_step = plan.groups * plan.taps * tap_step;
  const float* from = plan.partial + group * plan.taps * tap_step +
                      (channel_block * plan.filter_blocks + filter_block) * block_values;
  float* to = dw + ((group * plan.filters + filter_block * block) * plan.channels + channel_block * block) *
                       plan.taps;
  std::vector<float> sums(static_cast<size_t>(plan.taps * block));  // of a channel: [taps][filters]
  for (int64_t c = 0; c < channels; ++c) {
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (int64_t range = 0; range < plan.ranges; ++range) {
      for (int64_t tap = 0; tap < plan.taps; ++tap) {
        const float* values = from + range * range_step + tap * tap_step + c * block;
        float* sum = sums.data() + tap * block;
        for (int64_t k = 0; k < block; ++k) sum[k] += values[k];
      }
    }
    for (int64_t k = 0; k < filters; ++k) {
      for (int64_t tap = 0; tap < plan.taps; ++tap) {
        to[(k * plan.channels + c) * plan.taps + tap] = sums[static_cast<size_t>(tap * block + k)];
      }
    }
  }
  if (channel_block > 0) return;
  for (int64_t k = 0; k < filters; ++k) {
    float sum = 0;
    for (int64_t range = 0; range < plan.ranges; ++range) {
      sum +=
          plan.partial_bias[((range * plan.groups + group) * plan.filter_blocks + filter_block) * block + k];
    }
    db[group * plan.filters + filter_block * block + k] = sum;
  }
}

}  // namespace volnet::conv3d

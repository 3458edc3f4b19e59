#include "kernels/conv3d/winograd.h"

#include <algorithm>

#include "isa/bfloat16.h"

namespace volnet::conv3d {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// One or three neighbouring taps, stride 1, every output written.
bool fits(const Axis& axis) {
  const size_t taps = axis.taps.size();
  const bool neighbours = taps == 1 || (taps == 3 && axis.taps[1].offset == axis.taps[0].offset + 1 &&
                                        axis.taps[2].offset == axis.taps[0].offset + 2);
  return neighbours && axis.stride == 1 && axis.write_step == 1 && axis.write_first == 0 &&
         axis.count == axis.output;
}

// A staged plan may need so many bytes for V and Z: this, or this for each worker.
constexpr int64_t least_shared = int64_t{128} << 20, worker_share = int64_t{8} << 20;

}  // namespace

std::vector<std::array<int64_t, 3>> winograd_tiles(const Convolution& call) {
  std::vector<std::array<int64_t, 3>> tiles;
  if (!std::all_of(call.axes.begin(), call.axes.end(), fits)) return tiles;
  const auto sizes = [](const Axis& axis) {
    return axis.taps.size() == 1 ? std::vector<int64_t>{1} : std::vector<int64_t>{2, 4};
  };
  for (const int64_t d : sizes(call.axes[0])) {
    for (const int64_t h : sizes(call.axes[1])) {
      for (const int64_t w : sizes(call.axes[2])) {
        if (d * h * w > 1) tiles.push_back({d, h, w});
      }
    }
  }
  return tiles;
}

Winograd plan_winograd(const WinogradKernel& kernel, const Convolution& call,
                       const std::array<int64_t, 3>& tile, int64_t workers) {
  Winograd plan;
  plan.x = call.x;
  plan.y = call.y;
  plan.bias = static_cast<const float*>(call.bias);
  plan.batch = call.batch;
  plan.groups = call.groups;
  plan.channels = call.channels;
  plan.filters = call.filters;
  plan.epilogue = call.epilogue;
  plan.loads_inputs = call.loads_inputs;
  plan.inputs = call.inputs;
  plan.width = kernel.width;
  plan.k_block = call.filters <= kernel.width ? kernel.width : 2 * kernel.width;
  plan.c_padded = ceil_div(call.channels, kernel.width) * kernel.width;
  plan.k_padded = ceil_div(call.filters, plan.k_block) * plan.k_block;
  for (size_t i = 0; i < 3; ++i) {
    const Axis& axis = call.axes[i];
    plan.axes[i] = {axis.input, axis.output, axis.taps.front().offset, tile[i],
                    ceil_div(axis.output, tile[i])};
  }

  // More tiles at once read U less often; fewer keep V, M and Z in the second-level cache.
  const int64_t width = plan.c_padded + plan.k_padded;
  const int64_t rows = kernel.row_tile * (width <= 160 ? 1 : width <= 320 ? 2 : 4);
  const int64_t least_pieces = 4 * std::max<int64_t>(workers, 1), tiles = std::max<int64_t>(plan.tiles(), 1);
  plan.block_tiles = std::min(rows, tiles);
  const auto& [depth, height, width_axis] = plan.axes;
  plan.v_step = (plan.products() | 1) * kernel.width;
  plan.m_step = (height.alpha() * width_axis.alpha() | 1) * plan.k_block;
  plan.z_step = (depth.alpha() * height.m * width_axis.m | 1) * kernel.width;
  if (plan.groups * ceil_div(tiles, rows) < least_pieces) {
    plan.block_tiles = std::clamp<int64_t>(plan.groups * tiles / least_pieces, 1, rows);
    // Small weights may as well be read by every piece.
    plan.staged = rows > kernel.row_tile;
    plan.staged = plan.staged && winograd_shared(plan) <= std::max(least_shared, workers * worker_share);
    const int64_t k_blocks = plan.k_padded / plan.k_block, planes = plan.groups * depth.alpha();
    const int64_t parts = std::clamp(ceil_div(least_pieces, planes * k_blocks),
                                     ceil_div(tiles, 6 * kernel.row_tile), ceil_div(tiles, kernel.row_tile));
    plan.multiplied_tiles = tiles / parts;
    plan.multiplied_blocks = k_blocks / std::min(k_blocks, ceil_div(least_pieces, planes * parts));
  }
  plan.epilogue.slots = ceil_div(plan.image_tiles(), plan.block_tiles) + 1;  // an image may begin in a block
  return plan;
}

// Measured: an element of V or M costs about as much as 14 multiply-adds of a product, because transforms
// move it through registers three times; an element of U 7, or 32 where all of U does not fit the last cache.
constexpr double transform_cost = 14.0, cached_weight_cost = 7.0, weight_cost = 32.0;
constexpr double last_cache = 32 << 20;

double winograd_cost(const Winograd& plan) {
  const auto products = static_cast<double>(plan.products()), tiles = static_cast<double>(plan.tiles());
  const auto c = static_cast<double>(plan.c_padded), k = static_cast<double>(plan.k_padded);
  const bool cached = static_cast<double>(transformed_size(plan)) * sizeof(float) <= last_cache;
  const double reading = (cached ? cached_weight_cost : weight_cost) * c * k;
  const double a_group = products * (tiles * (c * k + transform_cost * (c + k)) + reading);
  return a_group * static_cast<double>(plan.groups);
}

int64_t transformed_size(const Winograd& plan) {
  return plan.groups * plan.products() * plan.k_padded * plan.channels;
}

namespace {

constexpr int64_t together = 8;  // channels whose weights are transformed by one piece

}  // namespace

int64_t transforming_pieces(const Winograd& plan) {
  return plan.groups * (plan.k_padded / plan.k_block) * ceil_div(plan.channels, together);
}

int64_t transforming_scratch(const Winograd& plan) {
  return plan.products() * together * plan.k_block * static_cast<int64_t>(sizeof(float));
}

template <class S>
void transform_weights(const WinogradKernel& kernel, const S* w, const WeightStrides& strides,
                       const Convolution& call, const Winograd& plan, int64_t piece, float* u,
                       float* scratch) {
  constexpr int64_t most = 32;  // filters of a block: two vectors of the widest level
  const auto& [depth, height, width] = call.axes;
  const int64_t chunks = ceil_div(plan.channels, together), blocks = plan.k_padded / plan.k_block;
  const int64_t chunk = piece % chunks, block = piece / chunks % blocks, group = piece / chunks / blocks;
  const int64_t filters = std::min(plan.k_block, plan.filters - block * plan.k_block);
  const int64_t p_step = blocks * plan.channels * plan.k_block;
  const S* from = w + group * strides.group + block * plan.k_block * strides.filter;

  float taps[27 * most] = {};
  const int64_t first = chunk * together, count = std::min(together, plan.channels - first);
  for (int64_t c = first; c < first + count; ++c) {
    for (int64_t k = 0; k < filters; ++k) {
      const S* filter = from + k * strides.filter + c * strides.channel;
      float* tap = taps + k;
      for (const Tap& a : depth.taps) {
        for (const Tap& b : height.taps) {
          for (const Tap& t : width.taps) {
            *tap = to_float(
                filter[a.index * strides.taps[0] + b.index * strides.taps[1] + t.index * strides.taps[2]]);
            tap += plan.k_block;
          }
        }
      }
    }
    kernel.weights(plan, together * plan.k_block, taps, scratch + (c - first) * plan.k_block);
  }
  // Products lie far apart in U, each on pages of its own: all channels at once.
  float* to = u + group * plan.products() * p_step + (block * plan.channels + first) * plan.k_block;
  for (int64_t p = 0; p < plan.products(); ++p) {
    std::copy_n(scratch + p * together * plan.k_block, count * plan.k_block, to + p * p_step);
  }
}

namespace {

// Floats of V, M and Z of a tile.
int64_t v_tile(const Winograd& plan) { return plan.c_padded / plan.width * plan.v_step; }
int64_t m_tile(const Winograd& plan) {
  return (plan.staged ? plan.multiplied_blocks : plan.k_padded / plan.k_block) * plan.m_step;
}
int64_t z_tile(const Winograd& plan) { return plan.k_padded / plan.width * plan.z_step; }

// Tiles of a piece: those of the middle stages share more of the weights that they read.
int64_t piece_tiles(const Winograd& plan, int64_t stage) {
  return stage == 1 ? plan.multiplied_tiles : plan.block_tiles;
}

}  // namespace

int64_t winograd_stages(const Winograd& plan) { return plan.staged ? 3 : 1; }

int64_t winograd_pieces(const Winograd& plan, int64_t stage) {
  const int64_t k_parts =
      ceil_div(plan.k_padded / plan.k_block, std::max<int64_t>(plan.multiplied_blocks, 1));
  const int64_t split = stage == 1 ? plan.axes[0].alpha() * k_parts : 1;
  return plan.groups * ceil_div(plan.tiles(), piece_tiles(plan, stage)) * split;
}

int64_t winograd_shared(const Winograd& plan) {
  if (!plan.staged) return 0;
  return plan.groups * plan.tiles() * (v_tile(plan) + z_tile(plan)) * static_cast<int64_t>(sizeof(float));
}

int64_t winograd_scratch(const Winograd& plan) {
  const int64_t tile = m_tile(plan) + (plan.staged ? 0 : v_tile(plan) + z_tile(plan));
  return (plan.staged ? plan.multiplied_tiles : plan.block_tiles) * tile *
         static_cast<int64_t>(sizeof(float));
}

void run_winograd_piece(const WinogradKernel& kernel, const Winograd& plan, int64_t stage, int64_t piece,
                        void* shared, void* scratch) {
  const int64_t most = piece_tiles(plan, stage), blocks = ceil_div(plan.tiles(), most);
  const int64_t planes = plan.axes[0].alpha(), first = piece % blocks * most;
  const int64_t count = std::min(most, plan.tiles() - first);
  if (!plan.staged) {
    const int64_t group = piece / blocks;
    auto* v = static_cast<float*>(scratch);
    float* m = v + plan.block_tiles * v_tile(plan);
    float* z = m + plan.block_tiles * m_tile(plan);
    kernel.input(plan, group, first, count, v);
    for (int64_t a = 0; a < planes; ++a) {
      kernel.multiply(plan, group, a, 0, plan.k_padded / plan.k_block, count, v, m);
      kernel.output_plane(plan, a, 0, plan.k_padded / plan.k_block, count, m, z);
    }
    kernel.output(plan, group, first, count, z);
    return;
  }
  const int64_t k_blocks = plan.k_padded / plan.k_block;
  const int64_t k_parts = stage == 1 ? ceil_div(k_blocks, plan.multiplied_blocks) : 1;
  const int64_t outer = piece / blocks, k = outer % k_parts * plan.multiplied_blocks;
  const int64_t a = stage == 1 ? outer / k_parts % planes : 0;
  const int64_t group = outer / (stage == 1 ? k_parts * planes : 1);
  float* v = static_cast<float*>(shared) + (group * plan.tiles() + first) * v_tile(plan);
  float* z = static_cast<float*>(shared) + plan.groups * plan.tiles() * v_tile(plan) +
             (group * plan.tiles() + first) * z_tile(plan);
  if (stage == 0) {
    kernel.input(plan, group, first, count, v);
  } else if (stage == 1) {
    auto* m = static_cast<float*>(scratch);
    const int64_t k_end = std::min(k + plan.multiplied_blocks, k_blocks);
    kernel.multiply(plan, group, a, k, k_end, count, v, m);
    kernel.output_plane(plan, a, k, k_end, count, m, z);
  } else {
    kernel.output(plan, group, first, count, z);
  }
}

template void transform_weights(const WinogradKernel&, const float*, const WeightStrides&, const Convolution&,
                                const Winograd&, int64_t, float*, float*);
template void transform_weights(const WinogradKernel&, const bfloat16*, const WeightStrides&,
                                const Convolution&, const Winograd&, int64_t, float*, float*);

}  // namespace volnet::conv3d

#include "kernels/conv3d/amx.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace volnet::conv3d {
namespace {

constexpr int64_t tile_bytes = 1024, tile_values = 32, filter_block = 32;
constexpr int64_t cache = 5 << 18;  // of the second level, what one worker may count on
constexpr int64_t slack = 8192;     // the last tile reads past the last position

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

// Taps of one phase that lie within `width` positions share a window.
std::vector<AmxWindow> windows_of(const AmxAxis& axis, int64_t width) {
  std::vector<AmxWindow> windows;
  for (size_t t = 0; t < axis.shifts.size(); ++t) {
    const AmxAxis::Shift& shift = axis.shifts[t];
    const auto covers = [&](const AmxWindow& window) {
      const int64_t place = shift.positions - window.shift.positions;
      return window.shift.phase == shift.phase && place >= 0 && place < width;
    };
    auto window = std::find_if(windows.begin(), windows.end(), covers);
    if (window == windows.end()) {
      windows.push_back({shift, std::vector<int64_t>(static_cast<size_t>(width), -1)});
      window = windows.end() - 1;
    }
    window->taps[static_cast<size_t>(shift.positions - window->shift.positions)] = static_cast<int64_t>(t);
  }
  return windows;
}

bool lie_in_a_row(const std::vector<Tap>& taps) {
  for (size_t t = 1; t < taps.size(); ++t) {
    if (taps[t].offset != taps[t - 1].offset + 1) return false;
  }
  return !taps.empty();
}

// Every `step`th tap.
Axis sparse(const Axis& axis, int64_t step) {
  Axis result = axis;
  result.taps.clear();
  for (size_t t = 0; t < axis.taps.size(); t += static_cast<size_t>(step)) {
    result.taps.push_back(axis.taps[t]);
  }
  return result;
}

// Whether patches are faster than small_channels_body.h.
bool patches_serve(const Convolution& call, int64_t parts) {
  const auto& [depth, height, width] = call.axes;
  if (call.channels != 1 || call.groups != 1 || call.loads_inputs || depth.taps.empty() ||
      !lie_in_a_row(height.taps) || !lie_in_a_row(width.taps) || width.stride > patch_stride ||
      static_cast<int64_t>(width.taps.size()) > patch_columns) {
    return false;
  }
  const auto size = [](const Axis& axis) { return static_cast<int64_t>(axis.taps.size()); };
  // Cycles for 16 outputs and 16 filters, measured: those of the direct kernel; of products; of patches.
  const int64_t direct = 8 * size(depth) * size(height) * size(width);
  const int64_t products = 16 * size(depth) * ceil_div(size(height), patch_rows) * (parts == 2 ? 3 : 1);
  const int64_t patches = 320 * parts / ceil_div(call.filters, 16);
  return products + patches < direct;
}

int64_t reach_of(const Axis& axis) {
  return axis.taps.empty() ? 0 : axis.taps.back().offset - axis.taps.front().offset;
}

int64_t steps_a_block(const Amx& plan) {
  return plan.channel_blocks * static_cast<int64_t>(plan.call.axes[0].taps.size() * plan.steps.size());
}

// Bytes of the weights of a block of filters.
int64_t weights_a_block(const Amx& plan) { return steps_a_block(plan) * plan.parts * 2 * tile_bytes; }

// Sizes that follow from the tile.
void lay_out(Amx& plan) {
  const auto& [depth, height, width] = plan.call.axes;
  plan.planes = reach_of(depth) + 1;
  plan.row = plan.width_tile + plan.width.reach;
  plan.phase_size = (plan.height_tile + plan.height.reach) * plan.row * plan.lanes * 2 + 64;
  plan.block_size =
      static_cast<int64_t>(plan.height.residues.size() * plan.width.residues.size()) * plan.phase_size;
  plan.plane_size = plan.channel_blocks * plan.block_size;
  plan.part_size = plan.planes * plan.plane_size;

  // So many channels in one pass that their weights and their input stay in the second-level cache together.
  const int64_t input = plan.parts * plan.part_size, weights = weights_a_block(plan);
  plan.channel_tile = std::clamp<int64_t>(cache * plan.channel_blocks / std::max<int64_t>(input + weights, 1),
                                          1, plan.channel_blocks);
  const int64_t passes = ceil_div(plan.channel_blocks, plan.channel_tile);
  plan.channel_tile = ceil_div(plan.channel_blocks, passes);
  const int64_t blocks =
      passes > 1 ? ceil_div((plan.height_tile - 1) * plan.row + plan.width_tile, 32) + 1 : 2;
  plan.sums_size = blocks * 32 * filter_block * static_cast<int64_t>(sizeof(float)) +
                   ceil_div(static_cast<int64_t>(depth.taps.size()), 8) * 64;

  plan.call.epilogue.slots = ceil_div(depth.count, plan.depth_tile) *
                             ceil_div(height.count, plan.height_tile) *
                             ceil_div(width.count, plan.width_tile);
  plan.pieces = plan.call.batch * plan.call.epilogue.slots * plan.call.groups *
                ceil_div(plan.filter_blocks, plan.filter_tile);
}

// Cycles of one core, measured: a product of two tiles takes 16; storing a block of 32 outputs and 32 filters
// about 250; bringing 32 values to scratch about 10 a part; a byte that comes from behind the second-level
// cache a sixteenth; and a piece 1000 before its first product.
double cost(const Amx& plan) {
  const auto& [depth, height, width] = plan.call.axes;
  const int64_t products = plan.parts == 2 ? 3 : 1;
  const int64_t passes = ceil_div(plan.channel_blocks, plan.channel_tile);
  const int64_t blocks = ceil_div((plan.height_tile - 1) * plan.row + plan.width_tile, 32);
  const int64_t steps = steps_a_block(plan), input = plan.parts * plan.part_size;
  const int64_t weights = weights_a_block(plan);
  // A plane of outputs of a piece, and a plane of its input.
  double outputs = static_cast<double>(blocks * plan.filter_tile * (steps * products * 64 + 250 * passes));
  if (weights * plan.filter_tile + input > cache)
    outputs += static_cast<double>(weights * plan.filter_tile) / 16;
  if (weights + input > cache) outputs += static_cast<double>(plan.filter_tile * input) / 16;
  const double inputs = static_cast<double>(plan.parts * plan.plane_size / 64) * 10.0;
  const int64_t planes = (plan.depth_tile - 1) * depth.stride + plan.planes;
  return static_cast<double>(plan.pieces) *
         (1000.0 + static_cast<double>(plan.depth_tile) * outputs + static_cast<double>(planes) * inputs);
}

// 1, 2, 3, 4, 6, 8, 12, ... and `size`.
std::vector<int64_t> tile_sizes(int64_t size) {
  std::vector<int64_t> sizes;
  for (int64_t power = 1; power < size; power *= 2) {
    sizes.push_back(power);
    if (power > 1 && power * 3 / 2 < size) sizes.push_back(power * 3 / 2);
  }
  sizes.push_back(size);
  return sizes;
}

}  // namespace

AmxAxis phases_of(const Axis& axis) {
  AmxAxis result;
  int64_t last = 0;
  for (const Tap& tap : axis.taps) {
    const int64_t position = floor_div(tap.offset, axis.stride);
    const int64_t residue = tap.offset - position * axis.stride;
    const auto found = std::find(result.residues.begin(), result.residues.end(), residue);
    result.shifts.push_back({found - result.residues.begin(), position});
    if (found == result.residues.end()) result.residues.push_back(residue);
    result.first = result.shifts.size() == 1 ? position : std::min(result.first, position);
    last = result.shifts.size() == 1 ? position : std::max(last, position);
  }
  result.reach = last - result.first;
  for (AmxAxis::Shift& shift : result.shifts) shift.positions -= result.first;
  return result;
}

bool amx_serves(const Convolution& call, int64_t parts) {
  if (parts <= 0 || is_depthwise(call)) return false;
  // So few channels leave most of a tile empty; small_channels_body.h is as fast.
  return call.channels > (parts == 2 ? 4 : 2) || patches_serve(call, parts);
}

bool amx_serves_plain(const Convolution& call) {
  return call.axes[2].stride == 1 && call.axes[2].write_step == 1 && call.epilogue.empty() &&
         !call.loads_inputs;
}

void plan_amx(const Convolution& call, int64_t element_size, int64_t parts, int64_t workers, Amx& plan) {
  plan.call = call;
  if (is_pointwise(call)) {
    // Rows of a few tiles, each a plane: what one needs stays in the first-level cache, and meanwhile the
    // next is fetched.
    merge_axes(plan.call, 64);
    std::swap(plan.call.axes[0], plan.call.axes[1]);
  }
  const auto& [depth, height, width] = plan.call.axes;
  plan.parts = parts;
  plan.patches = patches_serve(plan.call, parts);
  plan.lanes = call.channels > 16 || plan.patches ? 32 : call.channels > 8 ? 16 : call.channels > 4 ? 8 : 4;
  plan.channel_blocks = ceil_div(call.channels, plan.lanes);
  plan.filter_blocks = ceil_div(call.filters, filter_block);
  plan.height = phases_of(plan.patches ? sparse(height, patch_rows) : height);
  plan.width = phases_of(plan.patches ? sparse(width, patch_columns) : width);
  plan.windows = windows_of(plan.width, tile_values / plan.lanes);
  plan.steps.resize(plan.height.shifts.size() * plan.windows.size());

  double best = std::numeric_limits<double>::infinity();
  std::array<int64_t, 4> chosen{};
  const int64_t widest = ceil_div(width.count, ceil_div(width.count, 256));
  for (const int64_t w : {widest, ceil_div(widest, 2), ceil_div(widest, 4)}) {
    for (const int64_t h : tile_sizes(height.count)) {
      for (const int64_t d : tile_sizes(depth.count)) {
        for (const int64_t split : {int64_t{1}, int64_t{2}, int64_t{4}, plan.filter_blocks}) {
          plan.depth_tile = d;
          plan.height_tile = h;
          plan.width_tile = w;
          plan.filter_tile = ceil_div(plan.filter_blocks, split);
          lay_out(plan);
          // Eight pieces a worker keep all of them busy to the end; every halving must be worth 5 %.
          const double missing =
              std::log2(std::max(1.0, 8.0 * static_cast<double>(workers) / static_cast<double>(plan.pieces)));
          const double score = cost(plan) * (1.0 + 0.05 * missing);
          if (score < best) {
            best = score;
            chosen = {d, h, w, plan.filter_tile};
          }
        }
      }
    }
  }
  plan.depth_tile = chosen[0];
  plan.height_tile = chosen[1];
  plan.width_tile = chosen[2];
  plan.filter_tile = chosen[3];
  lay_out(plan);

  // So large that writing past the caches costs less even if it is read again at once, and in whole lines.
  constexpr int64_t large = int64_t{16} << 20;
  const int64_t filters = call.filters * element_size;
  const int64_t bytes = call.batch * depth.output * height.output * width.output * call.groups * filters;
  plan.stream =
      !call.plain_y && bytes >= large && filters % 64 == 0 && reinterpret_cast<uintptr_t>(call.y) % 64 == 0;

  const auto phases_w = static_cast<int64_t>(plan.width.residues.size());
  size_t step = 0;
  for (const AmxAxis::Shift& h : plan.height.shifts) {
    for (const AmxWindow& window : plan.windows) {
      plan.steps[step++] = (h.phase * phases_w + window.shift.phase) * plan.phase_size +
                           (h.positions * plan.row + window.shift.positions) * plan.lanes * 2;
    }
  }
}

int64_t amx_scratch(const Amx& plan) { return plan.sums_size + plan.parts * plan.part_size + slack; }

int64_t amx_packed_size(const Amx& plan) {
  return plan.call.groups * plan.filter_blocks * steps_a_block(plan) * plan.parts * 2 * tile_bytes;
}

int64_t amx_packing_pieces(const Amx& plan) {
  return plan.call.groups * plan.filter_blocks * plan.channel_blocks;
}

}  // namespace volnet::conv3d

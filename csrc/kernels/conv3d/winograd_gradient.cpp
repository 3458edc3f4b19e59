#include "kernels/conv3d/winograd_gradient.h"

#include <algorithm>

namespace volnet::conv3d {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Chunks of at most `most`, as even as vectors of `width` allow.
void split(int64_t channels, int64_t most, int64_t width, int64_t& chunk, int64_t& chunks) {
  chunks = ceil_div(channels, most);
  chunk = ceil_div(ceil_div(channels, chunks), width) * width;
}

}  // namespace

bool plan_winograd_gradient(const WinogradGradientKernel& kernel, const Convolution& call,
                            WinogradGradient& plan) {
  WinogradKernel tiles{};
  tiles.width = kernel.width;
  tiles.row_tile = 1;
  constexpr double direct_efficiency = 0.4;  // of the direct kernel, measured
  double best =
      static_cast<double>(call.channels * call.filters * call.groups * call.batch) / direct_efficiency;
  for (const Axis& axis : call.axes) {
    best *= static_cast<double>(axis.output) * static_cast<double>(axis.taps.size());
  }
  Winograd& forward = plan.forward;
  for (const auto& tile : winograd_tiles(call)) {
    const Winograd candidate = plan_winograd(tiles, call, tile, 1);
    if (winograd_cost(candidate) >= best) continue;
    best = winograd_cost(candidate);
    forward = candidate;
  }
  if (forward.width == 0) return false;
  split(call.channels, 256, kernel.width, plan.c_chunk, plan.c_chunks);
  split(call.filters, 128, kernel.width, plan.k_chunk, plan.k_chunks);
  plan.v_step = (plan.plane() | 1) * kernel.width;
  // The more tiles at once, the less dU is moved; the fewer, the longer V and W stay cached.
  plan.block_tiles = plan.c_chunk * plan.k_chunk <= 64 * 64 ? 24 : 40;

  // Enough ranges for many cores, but each with tiles enough to be worth its partial sums.
  plan.ranges = 1;
  const int64_t of_a_range = partial_size(plan) * static_cast<int64_t>(sizeof(float));
  constexpr int64_t wanted_pieces = 4 * 112, least_tiles = 128, most_bytes = int64_t{64} << 20;
  const int64_t wanted = ceil_div(wanted_pieces, plan.pieces());
  const int64_t worthwhile = forward.tiles() / least_tiles, affordable = most_bytes / of_a_range;
  plan.ranges = std::max<int64_t>(std::min({wanted, worthwhile, affordable}), 1);
  return true;
}

int64_t partial_size(const WinogradGradient& plan) {
  return plan.pieces() * plan.plane_taps() * plan.c_chunk * plan.k_chunk;
}

int64_t partial_bias_size(const WinogradGradient& plan) {
  return plan.ranges * plan.forward.groups * plan.k_padded();
}

int64_t winograd_gradient_scratch(const WinogradGradient& plan) {
  const int64_t vectors = (plan.c_chunk + plan.k_chunk) / plan.forward.width;
  const int64_t floats = plan.block_tiles * vectors * plan.v_step + plan.plane() * plan.u_step();
  return floats * static_cast<int64_t>(sizeof(float));
}

}  // namespace volnet::conv3d

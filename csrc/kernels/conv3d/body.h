// The convolution kernels of one instruction set. Included inside volnet::conv3d::VOLNET_ISA after Vec; the
// including file defines `row_tile`, the most output voxels whose accumulators fit the registers.
#include "kernels/conv3d/epilogue_body.h"
#include "kernels/conv3d/input_body.h"

// What a tile of outputs reads: voxel r, tap t, channel c of row i is rows[i].x[r * step + t * tap_step + c]
// and its weights begin at rows[i].weights[weights + (t * channels + c) * weight_step]. With each channel of
// a tap the line `ahead_step` bytes on from the last is fetched, from rows[i].ahead: every broadcast walks a
// line of its own, which the hardware does not foresee, and all lines of a tile at once are more than it can
// fetch.
struct TileInput {
  const TapRow* rows;
  int64_t row_count;
  int64_t step;
  int64_t taps, tap_step;
  int64_t channels;
  int64_t weights, weight_step;
  int64_t ahead_step;
  // Where the tile reaches over the ends of a row of `input` voxels: voxel r, tap t is the row's voxel
  // first + r * stride + t * dilation, or, beyond the ends, `outside`, a voxel of zeros.
  int64_t first, input, stride, dilation;
  const void* outside;
};

// Accumulates R output voxels times V vectors of filters in registers over all rows. `stream` asks for whole
// vectors of filters and an aligned y.
template <int R, int V, bool Edge, class T, class Y>
void tile(const TileInput& input, const typename T::element* bias, Y* y, int64_t y_step, int64_t filters,
          bool stream) {
  using E = typename T::element;
  const int64_t step = input.step, channels = input.channels, weight_step = input.weight_step;
  const int64_t last_lanes = filters - (V - 1) * T::width;
  T sum[R][V];
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sum[r][v] = T::zero();
  }
  for (int64_t i = 0; i < input.row_count; ++i) {
    const E* w = static_cast<const E*>(input.rows[i].weights) + input.weights;
    const char* ahead = static_cast<const char*>(input.rows[i].ahead);
    for (int64_t t = 0; t < input.taps; ++t) {
      const E* x = static_cast<const E*>(input.rows[i].x) + t * input.tap_step;
      const E* from[R];
      if constexpr (Edge) {
        const int64_t first = input.first + t * input.dilation;
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const auto voxel = static_cast<uint64_t>(first + r * input.stride);
          from[r] = voxel < static_cast<uint64_t>(input.input) ? x + r * step
                                                               : static_cast<const E*>(input.outside);
        }
      }
      for (int64_t c = 0; c < channels; ++c, w += weight_step, ahead += input.ahead_step) {
        __builtin_prefetch(ahead);
        T weight[V];
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) weight[v] = T::load(w + v * T::width);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const T value = T::broadcast(Edge ? from[r][c] : x[r * step + c]);
#pragma GCC unroll 16
          for (int v = 0; v < V; ++v) sum[r][v] = T::fma(value, weight[v], sum[r][v]);
        }
      }
    }
  }
  // Last, so that a bias far from zero costs one rounding.
  if (bias != nullptr) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      const T add = T::load(bias + v * T::width, v + 1 < V ? T::width : last_lanes);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) sum[r][v] = sum[r][v] + add;
    }
  }
  if (stream) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sum[r][v].stream(y + r * y_step + v * T::width);
    }
  } else {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v + 1 < V; ++v) sum[r][v].store(y + r * y_step + v * T::width);
      sum[r][V - 1].store(y + r * y_step + (V - 1) * T::width, last_lanes);
    }
  }
}

template <class T, class Y>
using Tile = void (*)(const TileInput&, const typename T::element*, Y*, int64_t, int64_t, bool);

template <int V, bool Edge, class T, class Y, int... R>
Tile<T, Y> tile_of(int64_t size, std::integer_sequence<int, R...>) {
  static constexpr Tile<T, Y> tiles[] = {tile<R + 1, V, Edge, T, Y>...};
  return tiles[size - 1];
}

// One vector where the block has filters for no more.
template <class T, class Y>
Tile<T, Y> tile_of(int64_t size, int64_t filters, bool edge) {
  constexpr auto sizes = std::make_integer_sequence<int, row_tile>{};
  if constexpr (std::is_same_v<Y, typename T::element>) {
    if (edge) {
      return filters <= T::width ? tile_of<1, true, T, Y>(size, sizes) : tile_of<2, true, T, Y>(size, sizes);
    }
  }
  return filters <= T::width ? tile_of<1, false, T, Y>(size, sizes) : tile_of<2, false, T, Y>(size, sizes);
}

// Copies `voxels` input voxels from `first` on into a dense row of the compute type; voxels outside the
// volume are zero.
template <class T, class S>
void gather_row(const S* row, int64_t input, int64_t voxel_step, int64_t channels, int64_t first,
                int64_t voxels, typename T::element* to) {
  using E = typename T::element;
  const int64_t begin = std::clamp<int64_t>(-first, 0, voxels);
  const int64_t end = std::clamp<int64_t>(input - first, begin, voxels);
  std::fill_n(to, begin * channels, E{0});
  std::fill_n(to + end * channels, (voxels - end) * channels, E{0});
  // Groups apart, the voxels are one run.
  const int64_t runs = voxel_step == channels ? 1 : end - begin;
  const int64_t length = voxel_step == channels ? (end - begin) * channels : channels;
  to += begin * channels;
  const S* from = row + (first + begin) * voxel_step;
  for (int64_t i = 0; i < runs; ++i, to += length, from += voxel_step) {
    int64_t c = 0;
    for (; c + T::width <= length; c += T::width) T::load(from + c).store(to + c);
    T::load(from + c, length - c).store(to + c, length - c);
  }
}

template <class T, class S>
void direct(const Convolution& call, int64_t piece, void* scratch) {
  using E = typename T::element;
  const auto& [depth, height, width] = call.axes;
  const int64_t blocks = (call.filters + call.k_block - 1) / call.k_block;
  const int64_t shares = (blocks + call.blocks - 1) / call.blocks;
  const int64_t chunks = (height.count + call.rows - 1) / call.rows;
  // Planes first: the next piece finds most of its input rows in the cache.
  const int64_t d = piece % depth.count;
  const int64_t chunk = piece / depth.count % chunks;
  const int64_t share = piece / (chunks * depth.count) % shares;
  const int64_t group = piece / (chunks * depth.count * shares) % call.groups;
  const int64_t n = piece / (chunks * depth.count * shares * call.groups);
  const int64_t block_begin = share * call.blocks, block_end = std::min(block_begin + call.blocks, blocks);

  const int64_t taps_w = static_cast<int64_t>(width.taps.size());
  const int64_t taps_h = static_cast<int64_t>(height.taps.size());
  const int64_t taps_d = static_cast<int64_t>(depth.taps.size());
  const int64_t x_voxel = call.groups * call.channels, y_voxel = call.groups * call.filters;
  const int64_t x_row = width.input * x_voxel, y_row = width.output * y_voxel;
  const S* x = static_cast<const S*>(call.x) + n * depth.input * height.input * x_row + group * call.channels;
  const int64_t weights_row = taps_w * call.channels * call.k_block;
  const int64_t weights_block = taps_d * taps_h * weights_row;
  const E* weights = static_cast<const E*>(call.weights) + group * blocks * weights_block;

  const int64_t tap_first = taps_w > 0 ? width.taps.front().offset : 0;
  const int64_t tap_last = taps_w > 0 ? width.taps.back().offset : 0;
  const int64_t tap_dilation = taps_w > 1 ? width.taps[1].offset - width.taps[0].offset : 1;
  const int64_t tiles = (width.count + row_tile - 1) / row_tile;
  auto* rows = static_cast<TapRow*>(scratch);
  E* outside = reinterpret_cast<E*>(rows + taps_d * taps_h);
  E* gathered = outside + call.channels;
  std::fill_n(outside, call.channels, E{0});
  const int64_t segment = ((row_tile - 1) * width.stride + tap_last - tap_first + 1) * call.channels;
  const bool in_place = std::is_same_v<S, E> && !call.loads_inputs;
  const bool plain = call.epilogue.empty();
  const bool stream =
      !call.epilogue.gathers() && call.stream && reinterpret_cast<uintptr_t>(call.y) % 64 == 0;
  E sums[row_tile * 2 * T::width];  // of a tile, where an epilogue follows

  const int64_t h_end = std::min((chunk + 1) * call.rows, height.count);
  for (int64_t h = chunk * call.rows; h < h_end; ++h) {
    const int64_t y_offset = ((n * depth.output + depth.write_first + d * depth.write_step) * height.output +
                              height.write_first + h * height.write_step) *
                                 y_row +
                             width.write_first * y_voxel + group * call.filters;
    for (int64_t tile_index = 0, w = 0; tile_index < tiles; ++tile_index) {
      const int64_t size = (width.count - w + tiles - tile_index - 1) / (tiles - tile_index);
      const int64_t first = w * width.stride + tap_first;
      const int64_t voxels = (size - 1) * width.stride + tap_last - tap_first + 1;
      const bool edge = in_place && (first < 0 || first + voxels > width.input);

      int64_t row_count = 0;
      for (int64_t a = 0; a < taps_d; ++a) {
        const int64_t i = d * depth.stride + depth.taps[static_cast<size_t>(a)].offset;
        if (i < 0 || i >= depth.input) continue;
        for (int64_t b = 0; b < taps_h; ++b) {
          const int64_t j = h * height.stride + height.taps[static_cast<size_t>(b)].offset;
          if (j < 0 || j >= height.input) continue;
          const S* source = x + (i * height.input + j) * x_row;
          const void* values = source + first * x_voxel;
          if (!in_place) {
            E* to = gathered + row_count * segment;
            if (call.loads_inputs) {
              gather_inputs<T, S>(call.inputs, n, depth.input * height.input * width.input,
                                  (i * height.input + j) * width.input, width.input, group * call.channels,
                                  call.channels, first, voxels, to);
            } else {
              gather_row<T>(source, width.input, x_voxel, call.channels, first, voxels, to);
            }
            values = to;
          }
          rows[row_count++] = {values, weights + (a * taps_h + b) * weights_row,
                               source + (first + voxels) * x_voxel};  // what the next tile adds
        }
      }

      const int64_t voxel = in_place ? x_voxel : call.channels;
      const bool merged =
          tap_dilation == 1 && voxel == call.channels && !edge;  // taps and channels are one run
      const int64_t steps = std::max<int64_t>(taps_w * call.channels, 1);
      const int64_t ahead = size * width.stride * x_voxel * int64_t{sizeof(S)};
      TileInput input = {rows,
                         row_count,
                         width.stride * voxel,
                         merged ? 1 : taps_w,
                         tap_dilation * voxel,
                         merged ? taps_w * call.channels : call.channels,
                         0,
                         call.k_block,
                         (ahead + steps - 1) / steps,
                         first,
                         width.input,
                         width.stride,
                         tap_dilation,
                         outside};
      const int64_t y_step = width.write_step * y_voxel;
      for (int64_t block = block_begin; block < block_end; ++block, input.ahead_step = 0) {
        const int64_t k = block * call.k_block, filters = std::min(call.k_block, call.filters - k);
        const int64_t offset = y_offset + w * y_step + k, filter = group * call.filters + k;
        input.weights = block * weights_block;
        if (plain) {
          const E* bias = call.bias == nullptr ? nullptr : static_cast<const E*>(call.bias) + filter;
          tile_of<T, S>(size, filters, edge)(input, bias, static_cast<S*>(call.y) + offset, y_step, filters,
                                             stream);
        } else {
          tile_of<T, E>(size, filters, edge)(input, nullptr, sums, 2 * T::width, filters, false);
          finish<T, S>(call.epilogue, call.bias,
                       {sums, 2 * T::width, size, filter, filters, call.y, offset, y_step,
                        (n * chunks + chunk) * depth.count + d, y_voxel, stream});
        }
      }
      w += size;
    }
  }
  if (stream) VecBytes::stream_end();
}

#include "kernels/conv3d/small_channels_body.h"

template <class T, class S>
void direct_any(const Convolution& call, int64_t piece, void* scratch) {
  if (call.form == Form::small_channels) {
    small_channels<T, S>(call, piece, scratch);
  } else {
    direct<T, S>(call, piece, scratch);
  }
}

// R output voxels of a depthwise convolution for one vector of channels; every tap in [first, last) lies
// inside the row. Voxel r, tap t reads rows[i].x[offset + r * step + t * tap_step]; Y is S or the compute
// type.
template <int R, bool full, class T, class S, class Y>
void depthwise_tile(const TapRow* rows, int64_t row_count, int64_t offset, int64_t step, int64_t first,
                    int64_t last, int64_t tap_step, int64_t weight_offset, int64_t weight_step, T bias,
                    int64_t lanes, Y* y, int64_t y_step) {
  using E = typename T::element;
  T sum[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) sum[r] = T::zero();
  for (int64_t i = 0; i < row_count; ++i) {
    const E* weights = static_cast<const E*>(rows[i].weights) + weight_offset + first * weight_step;
    const S* x = static_cast<const S*>(rows[i].x) + offset + first * tap_step;
    for (int64_t t = first; t < last; ++t, x += tap_step, weights += weight_step) {
      const T weight = T::load(weights);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const T value = full ? T::load(x + r * step) : T::load(x + r * step, lanes);
        sum[r] = T::fma(value, weight, sum[r]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    if (full) {
      (sum[r] + bias).store(y + r * y_step);
    } else {
      (sum[r] + bias).store(y + r * y_step, lanes);
    }
  }
}

template <int R, class T, class S, class Y>
auto depthwise_tile_of(bool all_inside, bool full) {
  if (!all_inside) return full ? depthwise_tile<1, true, T, S, Y> : depthwise_tile<1, false, T, S, Y>;
  return full ? depthwise_tile<R, true, T, S, Y> : depthwise_tile<R, false, T, S, Y>;
}

#include "kernels/conv3d/depthwise_body.h"

// One filter a channel: vectors run over the channels, weights are [taps, channels padded to k_block].
template <class T, class S>
void depthwise(const Convolution& call, int64_t piece, void* scratch) {
  using E = typename T::element;
  constexpr int at_once = 8;  // enough sums to hide the latency of an addition
  if (call.form == Form::sliding) {
    const size_t taps = call.axes[2].taps.size();
    return taps == 3   ? sliding<3, T, S>(call, piece, scratch)
           : taps == 5 ? sliding<5, T, S>(call, piece, scratch)
                       : sliding<7, T, S>(call, piece, scratch);
  }
  const auto& [depth, height, width] = call.axes;
  const int64_t chunks = (height.count + call.rows - 1) / call.rows;
  const int64_t d = piece % depth.count;
  const int64_t chunk = piece / depth.count % chunks;
  const int64_t n = piece / (chunks * depth.count);
  const int64_t channels = call.groups, padded = (channels + T::width - 1) / T::width * T::width;
  const int64_t taps_w = static_cast<int64_t>(width.taps.size());
  const int64_t taps_h = static_cast<int64_t>(height.taps.size());
  const int64_t taps_d = static_cast<int64_t>(depth.taps.size());
  const int64_t tap_first = taps_w > 0 ? width.taps.front().offset : 0;
  const int64_t tap_last = taps_w > 0 ? width.taps.back().offset : 0;
  const int64_t tap_dilation = taps_w > 1 ? width.taps[1].offset - width.taps[0].offset : 1;
  const S* x = static_cast<const S*>(call.x) + n * depth.input * height.input * width.input * channels;
  const E* bias = static_cast<const E*>(call.bias);
  auto* rows = static_cast<TapRow*>(scratch);
  const bool plain = call.epilogue.empty();
  E sums[at_once * T::width];  // of a vector of channels, where an epilogue follows

  const int64_t h_end = std::min((chunk + 1) * call.rows, height.count);
  for (int64_t h = chunk * call.rows; h < h_end; ++h) {
    const int64_t y_offset = (((n * depth.output + depth.write_first + d * depth.write_step) * height.output +
                               height.write_first + h * height.write_step) *
                                  width.output +
                              width.write_first) *
                             channels;
    int64_t row_count = 0;
    for (int64_t a = 0; a < taps_d; ++a) {
      const int64_t i = d * depth.stride + depth.taps[static_cast<size_t>(a)].offset;
      if (i < 0 || i >= depth.input) continue;
      for (int64_t b = 0; b < taps_h; ++b) {
        const int64_t j = h * height.stride + height.taps[static_cast<size_t>(b)].offset;
        if (j < 0 || j >= height.input) continue;
        rows[row_count++] = {x + (i * height.input + j) * width.input * channels,
                             static_cast<const E*>(call.weights) + (a * taps_h + b) * taps_w * padded};
      }
    }
    for (int64_t w = 0; w < width.count;) {
      const int64_t base = w * width.stride + tap_first;
      // Taps that lie inside the row, for voxel w.
      int64_t first = 0, last = taps_w;
      while (first < last && base + first * tap_dilation < 0) ++first;
      while (last > first && base + (last - 1) * tap_dilation >= width.input) --last;
      const bool all_inside = first == 0 && last == taps_w && w + at_once <= width.count &&
                              (w + at_once - 1) * width.stride + tap_last < width.input;
      for (int64_t c = 0; c < channels; c += T::width) {
        const int64_t lanes = std::min(T::width, channels - c);
        const bool full = lanes == T::width;
        const int64_t offset = y_offset + w * width.write_step * channels + c;
        const int64_t y_step = width.write_step * channels;
        if (plain) {
          const T add = bias == nullptr ? T::zero() : T::load(bias + c, lanes);
          const auto run = depthwise_tile_of<at_once, T, S, S>(all_inside, full);
          run(rows, row_count, base * channels + c, width.stride * channels, first, last,
              tap_dilation * channels, c, padded, add, lanes, static_cast<S*>(call.y) + offset, y_step);
        } else {
          const auto run = depthwise_tile_of<at_once, T, S, E>(all_inside, full);
          run(rows, row_count, base * channels + c, width.stride * channels, first, last,
              tap_dilation * channels, c, padded, T::zero(), lanes, sums, T::width);
          finish<T, S>(call.epilogue, bias,
                       {sums, T::width, all_inside ? at_once : 1, c, lanes, call.y, offset, y_step,
                        (n * chunks + chunk) * depth.count + d, channels});
        }
      }
      w += all_inside ? at_once : 1;
    }
  }
}

#include "kernels/conv3d/weight_gradient_body.h"

void direct_f32(const Convolution& call, int64_t piece, void* scratch) {
  direct_any<Vec, float>(call, piece, scratch);
}
void direct_bf16(const Convolution& call, int64_t piece, void* scratch) {
  direct_any<Vec, bfloat16>(call, piece, scratch);
}
void apply_inputs_f32(const AppliedInputs& call, int64_t piece, void* to) {
  apply_inputs<Vec, float>(call, piece, to);
}
void apply_inputs_bf16(const AppliedInputs& call, int64_t piece, void* to) {
  apply_inputs<Vec, bfloat16>(call, piece, to);
}
void depthwise_f32(const Convolution& call, int64_t piece, void* scratch) {
  depthwise<Vec, float>(call, piece, scratch);
}
void depthwise_bf16(const Convolution& call, int64_t piece, void* scratch) {
  depthwise<Vec, bfloat16>(call, piece, scratch);
}
void weight_gradient_f32(const WeightGradient& call, int64_t piece, void* scratch) {
  weight_gradient<Vec>(call, piece, scratch);
}

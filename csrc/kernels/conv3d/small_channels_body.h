// Direct convolution of few input channels, for one instruction set. Included after body.h.
//
// A row of taps is too short to be a loop of its own where a voxel has one channel. Here the taps of all rows
// and their channels are one list of offsets into a padded copy of the input,
//
//   y[r, k] = bias[k] + sum over i of x[r * step + offsets[i]] * weights[i, k],
//
// and the copy, of as many input rows as a piece reads, holds a zero for every tap outside the volume.

template <int R, int V, class T, class Y>
void flat_tile(const typename T::element* x, const int64_t* offsets, int64_t count, int64_t step,
               const typename T::element* weights, int64_t weight_step, const typename T::element* bias, Y* y,
               int64_t y_step, int64_t filters, bool stream) {
  using E = typename T::element;
  const int64_t last_lanes = filters - (V - 1) * T::width;
  T sum[R][V];
#pragma GCC unroll 16
  for (int v = 0; v < V; ++v) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) sum[r][v] = T::zero();
  }
  for (int64_t i = 0; i < count; ++i, weights += weight_step) {
    const E* from = x + offsets[i];
    T weight[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) weight[v] = T::load(weights + v * T::width);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const T value = T::broadcast(from[r * step]);
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sum[r][v] = T::fma(value, weight[v], sum[r][v]);
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
  } else if (last_lanes == T::width) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sum[r][v].store(y + r * y_step + v * T::width);
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
using FlatTile = void (*)(const typename T::element*, const int64_t*, int64_t, int64_t,
                          const typename T::element*, int64_t, const typename T::element*, Y*, int64_t,
                          int64_t, bool);

template <int V, class T, class Y, int... R>
FlatTile<T, Y> flat_tile_of(int64_t size, std::integer_sequence<int, R...>) {
  static constexpr FlatTile<T, Y> tiles[] = {flat_tile<R + 1, V, T, Y>...};
  return tiles[size - 1];
}

// The same to a plain volume, for one channel and stride 1 along W: vectors run along the voxels of a row.
// Writes `filters` rows, y_step apart, of `voxels` outputs, and reads whole vectors of them.
template <class T>
constexpr int plain_filters = T::width == 1    ? 1
                              : row_tile >= 12 ? 8
                                               : 4;
constexpr int plain_vectors = 3;

template <class T, class Y>
void plain_tile(const typename T::element* x, const int64_t* offsets, int64_t count,
                const typename T::element* weights, int64_t weight_step, const typename T::element* bias,
                int64_t filters, int64_t voxels, Y* y, int64_t y_step, bool stream) {
  constexpr int R = plain_filters<T>, V = plain_vectors;
  T sum[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sum[r][v] = T::zero();
  }
  for (int64_t i = 0; i < count; ++i, weights += weight_step) {
    T value[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) value[v] = T::load(x + offsets[i] + v * T::width);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const T weight = T::broadcast(weights[r]);
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sum[r][v] = T::fma(value[v], weight, sum[r][v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    if (r >= filters) break;
    const T add = bias == nullptr ? T::zero() : T::broadcast(bias[r]);
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      const T value = sum[r][v] + add;
      const int64_t lanes = std::min(T::width, voxels - v * T::width);
      Y* to = y + r * y_step + v * T::width;
      if (stream && lanes == T::width) {
        value.stream(to);
      } else if (lanes > 0) {
        value.store(to, lanes);
      }
    }
  }
}

template <class T, class S>
void small_channels(const Convolution& call, int64_t piece, void* scratch) {
  using E = typename T::element;
  const auto& [depth, height, width] = call.axes;
  const int64_t chunks = (height.count + call.rows - 1) / call.rows;
  const int64_t d = piece % depth.count;
  const int64_t chunk = piece / depth.count % chunks;
  const int64_t group = piece / (chunks * depth.count) % call.groups;
  const int64_t n = piece / (chunks * depth.count * call.groups);

  const int64_t taps_w = static_cast<int64_t>(width.taps.size());
  const int64_t taps_h = static_cast<int64_t>(height.taps.size());
  const int64_t taps_d = static_cast<int64_t>(depth.taps.size());
  const int64_t x_voxel = call.groups * call.channels, y_voxel = call.groups * call.filters;
  const int64_t x_row = width.input * x_voxel, y_row = width.output * y_voxel;
  const S* x = static_cast<const S*>(call.x) + n * depth.input * height.input * x_row + group * call.channels;

  const int64_t h0 = chunk * call.rows, h1 = std::min(h0 + call.rows, height.count);
  const int64_t first_w = taps_w > 0 ? width.taps.front().offset : 0;
  const int64_t first_h = taps_h > 0 ? height.taps.front().offset : 0;
  const int64_t reach_w = taps_w > 0 ? width.taps.back().offset - first_w : 0;
  const int64_t reach_h = taps_h > 0 ? height.taps.back().offset - first_h : 0;
  const int64_t voxels = (width.count - 1) * width.stride + reach_w + 1;
  const int64_t input_rows = (h1 - h0 - 1) * height.stride + reach_h + 1;
  const int64_t row = voxels * call.channels;

  auto* offsets = static_cast<int64_t*>(scratch);
  E* copy = reinterpret_cast<E*>(offsets + taps_d * taps_h * taps_w * call.channels);
  int64_t count = 0, first_tap = 0, planes = 0;
  for (int64_t a = 0; a < taps_d; ++a) {
    const int64_t i = d * depth.stride + depth.taps[static_cast<size_t>(a)].offset;
    if (i < 0 || i >= depth.input) {
      if (planes == 0) first_tap = a + 1;  // the taps inside the volume are neighbours
      continue;
    }
    E* plane = copy + planes++ * input_rows * row;
    for (int64_t r = 0; r < input_rows; ++r) {
      const int64_t j = h0 * height.stride + first_h + r;
      if (j < 0 || j >= height.input) {
        std::fill_n(plane + r * row, row, E{0});
      } else if (call.loads_inputs) {
        gather_inputs<T, S>(call.inputs, n, depth.input * height.input * width.input,
                            (i * height.input + j) * width.input, width.input, group * call.channels,
                            call.channels, first_w, voxels, plane + r * row);
      } else {
        gather_row<T>(x + (i * height.input + j) * x_row, width.input, x_voxel, call.channels, first_w,
                      voxels, plane + r * row);
      }
    }
    for (const Tap& tap_h : height.taps) {
      for (const Tap& tap_w : width.taps) {
        for (int64_t c = 0; c < call.channels; ++c) {
          offsets[count++] =
              (plane - copy) + (tap_h.offset - first_h) * row + (tap_w.offset - first_w) * call.channels + c;
        }
      }
    }
  }

  const int64_t blocks = (call.filters + call.k_block - 1) / call.k_block;
  const int64_t tap_plane = taps_h * taps_w * call.channels * call.k_block;
  const int64_t tiles = (width.count + row_tile - 1) / row_tile;
  const int64_t step = width.stride * call.channels, y_step = width.write_step * y_voxel;
  const bool plain = call.epilogue.empty();
  const bool stream =
      !call.epilogue.gathers() && call.stream && reinterpret_cast<uintptr_t>(call.y) % 64 == 0;
  if (call.plain_y) {
    const bool whole_lines = stream && T::width * sizeof(S) % 64 == 0;
    constexpr int64_t at_once = plain_vectors * T::width;
    const int64_t plane = height.output * width.output, volume = depth.output * plane;
    for (int64_t h = h0; h < h1; ++h) {
      for (int64_t k = 0; k < call.filters; k += plain_filters<T>) {
        const E* weights = static_cast<const E*>(call.weights) +
                           (k / call.k_block * taps_d + first_tap) * tap_plane + k % call.k_block;
        S* y = static_cast<S*>(call.y) + (n * call.filters + k) * volume +
               (depth.write_first + d * depth.write_step) * plane +
               (height.write_first + h * height.write_step) * width.output + width.write_first;
        for (int64_t w = 0; w < width.count; w += at_once) {
          plain_tile<T>(copy + (h - h0) * height.stride * row + w, offsets, count, weights, call.k_block,
                        call.bias == nullptr ? nullptr : static_cast<const E*>(call.bias) + k,
                        call.filters - k, width.count - w, y + w, volume, whole_lines);
        }
      }
    }
    if (stream) VecBytes::stream_end();
    return;
  }
  E sums[row_tile * 2 * T::width];  // of a tile, where an epilogue follows
  for (int64_t h = h0; h < h1; ++h) {
    const E* line = copy + (h - h0) * height.stride * row;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t k = block * call.k_block, filters = std::min(call.k_block, call.filters - k);
      const E* bias =
          call.bias == nullptr ? nullptr : static_cast<const E*>(call.bias) + group * call.filters + k;
      const E* weights =
          static_cast<const E*>(call.weights) + ((group * blocks + block) * taps_d + first_tap) * tap_plane;
      const int64_t y_offset =
          ((n * depth.output + depth.write_first + d * depth.write_step) * height.output +
           height.write_first + h * height.write_step) *
              y_row +
          width.write_first * y_voxel + group * call.filters + k;
      for (int64_t tile_index = 0, w = 0; tile_index < tiles; ++tile_index) {
        const int64_t size = (width.count - w + tiles - tile_index - 1) / (tiles - tile_index);
        const auto sizes = std::make_integer_sequence<int, row_tile>{};
        const int64_t offset = y_offset + w * y_step;
        if (plain) {
          const auto run =
              filters <= T::width ? flat_tile_of<1, T, S>(size, sizes) : flat_tile_of<2, T, S>(size, sizes);
          run(line + w * step, offsets, count, step, weights, call.k_block, bias,
              static_cast<S*>(call.y) + offset, y_step, filters, stream);
        } else {
          const auto run =
              filters <= T::width ? flat_tile_of<1, T, E>(size, sizes) : flat_tile_of<2, T, E>(size, sizes);
          run(line + w * step, offsets, count, step, weights, call.k_block, nullptr, sums, 2 * T::width,
              filters, false);
          finish<T, S>(call.epilogue, call.bias,
                       {sums, 2 * T::width, size, group * call.filters + k, filters, call.y, offset, y_step,
                        (n * chunks + chunk) * depth.count + d, y_voxel, stream});
        }
        w += size;
      }
    }
  }
  if (stream) VecBytes::stream_end();
}

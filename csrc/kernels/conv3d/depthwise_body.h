// Depthwise convolution with 3, 5 or 7 neighbouring taps along W, for one instruction set. Included by
// body.h.
//
// A tile is up to R outputs along W of two neighbouring output rows, one vector of channels. An input voxel
// is loaded once and added to every sum of both rows that it touches; the sums stay in registers.

// A row of input under a tile, and the weights of its taps for each of the two output rows, null for none.
template <class E, class S>
struct SharedRow {
  const S* x;
  const E* weights[2];
};

// Where a tile reads: voxel i of a row, from the first output's first tap on, is x[(first + i) * step].
struct SlidingWindow {
  int64_t first;
  int64_t input;  // voxels of a row; those outside count as zero
  int64_t step;
  int64_t channel;      // first of the vector
  int64_t lanes;        // channels
  int64_t weight_step;  // from tap to tap
};

// Adds a row of input to the sums of output row 0 where Rows has bit 0, and of row 1 where it has bit 1.
template <int Rows, int R, int K, int Stride, bool Full, bool Edge, class T, class S>
inline __attribute__((always_inline)) void add_row(T (&sum)[2][R],
                                                   const SharedRow<typename T::element, S>& row,
                                                   const SlidingWindow& window) {
  alignas(64) static constexpr S outside[T::width] = {};
  T weight[2][K];
#pragma GCC unroll 16
  for (int t = 0; t < K; ++t) {
    const int64_t at = window.channel + t * window.weight_step;
    if constexpr ((Rows & 1) != 0) weight[0][t] = T::load(row.weights[0] + at);
    if constexpr ((Rows & 2) != 0) weight[1][t] = T::load(row.weights[1] + at);
  }
  const S* x = row.x + window.first * window.step + window.channel;
#pragma GCC unroll 64
  for (int i = 0; i < (R - 1) * Stride + K; ++i) {
    const S* from = x + i * window.step;
    if constexpr (Edge) {
      const bool inside = static_cast<uint64_t>(window.first + i) < static_cast<uint64_t>(window.input);
      from = inside ? from : outside;
    }
    const T value = Full ? T::load(from) : T::load(from, window.lanes);
#pragma GCC unroll 16
    for (int t = 0; t < K; ++t) {
      const int r = (i - t) / Stride;
      if (i < t || (i - t) % Stride != 0 || r >= R) continue;
      if constexpr ((Rows & 1) != 0) sum[0][r] = T::fma(value, weight[0][t], sum[0][r]);
      if constexpr ((Rows & 2) != 0) sum[1][r] = T::fma(value, weight[1][t], sum[1][r]);
    }
  }
}

// Writes `size` outputs of each row; y[1] is null where there is no second one.
template <int R, int K, int Stride, bool Full, bool Edge, class T, class S, class Y>
void sliding_tile(const SharedRow<typename T::element, S>* rows, int64_t row_count,
                  const SlidingWindow& window, T bias, int64_t size, Y* const (&y)[2], int64_t y_step,
                  bool stream) {
  T sum[2][R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) sum[0][r] = sum[1][r] = T::zero();
  for (int64_t i = 0; i < row_count; ++i) {
    if (rows[i].weights[1] == nullptr) {
      add_row<1, R, K, Stride, Full, Edge>(sum, rows[i], window);
    } else if (rows[i].weights[0] == nullptr) {
      add_row<2, R, K, Stride, Full, Edge>(sum, rows[i], window);
    } else {
      add_row<3, R, K, Stride, Full, Edge>(sum, rows[i], window);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    if (r >= size) break;
    sum[0][r] = sum[0][r] + bias;
    sum[1][r] = sum[1][r] + bias;
    if (stream) {
      sum[0][r].stream(y[0] + r * y_step);
      if (y[1] != nullptr) sum[1][r].stream(y[1] + r * y_step);
    } else {
      sum[0][r].store(y[0] + r * y_step, window.lanes);
      if (y[1] != nullptr) sum[1][r].store(y[1] + r * y_step, window.lanes);
    }
  }
}

// The most outputs along W whose sums fit the registers beside the weights of two rows of taps.
template <int K>
constexpr int sliding_width = std::max(4, row_tile + 1 - K);

template <int K, class T, class S, class Y>
auto sliding_tile_of(int64_t stride, bool full, bool edge) {
  constexpr int r = sliding_width<K>;
  using Tile = decltype(&sliding_tile<r, K, 1, true, false, T, S, Y>);
  static constexpr Tile tiles[] = {
      sliding_tile<r, K, 1, false, false, T, S, Y>, sliding_tile<r, K, 1, false, true, T, S, Y>,
      sliding_tile<r, K, 1, true, false, T, S, Y>,  sliding_tile<r, K, 1, true, true, T, S, Y>,
      sliding_tile<r, K, 2, false, false, T, S, Y>, sliding_tile<r, K, 2, false, true, T, S, Y>,
      sliding_tile<r, K, 2, true, false, T, S, Y>,  sliding_tile<r, K, 2, true, true, T, S, Y>,
  };
  return tiles[(stride - 1) * 4 + full * 2 + edge];
}

// Form::sliding: taps_w = K neighbours, stride 1 or 2 along W. Weights as in depthwise().
template <int K, class T, class S>
void sliding(const Convolution& call, int64_t piece, void* scratch) {
  using E = typename T::element;
  constexpr int64_t at_once = sliding_width<K>;
  const auto& [depth, height, width] = call.axes;
  const int64_t chunks = (height.count + call.rows - 1) / call.rows;
  const int64_t d = piece % depth.count;
  const int64_t chunk = piece / depth.count % chunks;
  const int64_t n = piece / (chunks * depth.count);
  const int64_t channels = call.groups, padded = (channels + T::width - 1) / T::width * T::width;
  const auto taps_h = static_cast<int64_t>(height.taps.size());
  const auto taps_d = static_cast<int64_t>(depth.taps.size());
  const int64_t h0 = chunk * call.rows, h1 = std::min(h0 + call.rows, height.count);
  const int64_t pairs = (h1 - h0 + 1) / 2, most_rows = taps_d * taps_h * 2;

  // The rows under each pair of output rows, in the order of their depth and then height, with their number.
  auto* counts = static_cast<int64_t*>(scratch);
  auto* rows = reinterpret_cast<SharedRow<E, S>*>(counts + pairs);
  const int64_t row_weights = K * padded;
  for (int64_t pair = 0; pair < pairs; ++pair) {
    const int64_t h = h0 + 2 * pair;
    int64_t count = 0;
    for (int64_t a = 0; a < taps_d; ++a) {
      const int64_t i = d * depth.stride + depth.taps[static_cast<size_t>(a)].offset;
      if (i < 0 || i >= depth.input) continue;
      const S* plane =
          static_cast<const S*>(call.x) + (n * depth.input + i) * height.input * width.input * channels;
      const E* weights = static_cast<const E*>(call.weights) + a * taps_h * row_weights;
      for (int64_t b0 = 0, b1 = h + 1 < h1 ? 0 : taps_h; b0 < taps_h || b1 < taps_h;) {
        const auto row_of = [&](int64_t o, int64_t b) {
          return b < taps_h ? o * height.stride + height.taps[static_cast<size_t>(b)].offset
                            : std::numeric_limits<int64_t>::max();
        };
        const int64_t j0 = row_of(h, b0), j1 = row_of(h + 1, b1), j = std::min(j0, j1);
        const E* first = j0 == j ? weights + b0++ * row_weights : nullptr;
        const E* second = j1 == j ? weights + b1++ * row_weights : nullptr;
        if (j < 0 || j >= height.input) continue;
        rows[pair * most_rows + count++] = {plane + j * width.input * channels, {first, second}};
      }
    }
    counts[pair] = count;
  }

  const int64_t y_step = width.write_step * channels, y_row = height.write_step * width.output * channels;
  const int64_t y_offset = (((n * depth.output + depth.write_first + d * depth.write_step) * height.output +
                             height.write_first + h0 * height.write_step) *
                                width.output +
                            width.write_first) *
                           channels;
  const int64_t tiles = (width.count + at_once - 1) / at_once;
  // The next plane's piece reads one plane that no piece has read yet; the two rows that this pair of its
  // outputs reads first are fetched here.
  const bool ahead = d + 1 < depth.count;
  const int64_t plane_step = depth.stride * height.input * width.input * channels;
  const bool plain = call.epilogue.empty();
  // A part of a cache line that goes past the caches costs as much as the whole.
  const bool stream = T::width * sizeof(S) % 64 == 0 && !call.epilogue.gathers() && call.stream &&
                      reinterpret_cast<uintptr_t>(call.y) % 64 == 0;
  E sums[2][at_once * T::width];  // of a tile, where an epilogue follows
  for (int64_t tile = 0, w = 0; tile < tiles; ++tile) {
    const int64_t size = (width.count - w + tiles - tile - 1) / (tiles - tile);
    const int64_t first = w * width.stride + width.taps.front().offset;
    const bool edge = first < 0 || first + (at_once - 1) * width.stride + K > width.input;
    for (int64_t pair = 0; pair < pairs; ++pair) {
      for (int64_t c = 0; c < channels; c += T::width) {
        const int64_t lanes = std::min(T::width, channels - c);
        if (ahead) {
          for (int64_t row = std::max<int64_t>(counts[pair] - 2, 0); row < counts[pair]; ++row) {
            const S* next = rows[pair * most_rows + row].x + plane_step + first * channels + c;
            for (int64_t i = 0; i < at_once * width.stride; ++i)
              __builtin_prefetch(next + i * channels, 0, 2);
          }
        }
        const SlidingWindow window = {first, width.input, channels, c, lanes, padded};
        const bool full = lanes == T::width, second = h0 + 2 * pair + 1 < h1;
        const int64_t offset = y_offset + 2 * pair * y_row + w * y_step + c;
        if (plain) {
          S* to = static_cast<S*>(call.y) + offset;
          const T add =
              call.bias == nullptr ? T::zero() : T::load(static_cast<const E*>(call.bias) + c, lanes);
          sliding_tile_of<K, T, S, S>(width.stride, full, edge)(
              rows + pair * most_rows, counts[pair], window, add, size, {to, second ? to + y_row : nullptr},
              y_step, stream);
        } else {
          sliding_tile_of<K, T, S, E>(width.stride, full, edge)(
              rows + pair * most_rows, counts[pair], window, T::zero(), size,
              {sums[0], second ? sums[1] : nullptr}, T::width, false);
          for (int64_t row = 0; row <= second; ++row) {
            finish<T, S>(call.epilogue, call.bias,
                         {sums[row], T::width, size, c, lanes, call.y, offset + row * y_row, y_step,
                          (n * chunks + chunk) * depth.count + d, channels, stream});
          }
        }
      }
    }
    w += size;
  }
  if (stream) VecBytes::stream_end();
}

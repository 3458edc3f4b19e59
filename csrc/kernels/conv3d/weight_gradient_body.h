// The gradient of the weights, for one instruction set. Included by body.h.
//
// It is a matrix product over the output voxels, dw[r, k] = sum over p of x_r[p] * dy[p, k], where r runs
// over channels (Form::rows), taps and channels (Form::small_channels), or, channel by channel, taps
// (depthwise).

// Rows of the two volumes whose product is summed, from the first voxel on.
template <class E>
struct RowPair {
  const E* x;
  const E* dy;
};

template <class E>
struct RowPairs {
  const RowPair<E>* rows;
  int64_t count;
  int64_t voxels;           // of each row
  int64_t x_step, dy_step;  // from voxel to voxel
};

// dw[r, 0 .. V * width) += sum over rows and voxels p of x[p * x_step + offset(r)] * dy[p * dy_step + ..],
// where offset(r) is offsets[r] if Listed, else first + r. The last vector has `last_lanes` filters.
template <int R, int V, bool Listed, class T>
void outer_product(const RowPairs<typename T::element>& pairs, const int64_t* offsets, int64_t first,
                   int64_t last_lanes, typename T::element* dw, int64_t dw_step) {
  using E = typename T::element;
  constexpr int64_t ahead = 8;  // voxels; far steps are not foreseen by the hardware
  const int64_t x_step = pairs.x_step, dy_step = pairs.dy_step, voxels = pairs.voxels;
  T sum[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sum[r][v] = T::zero();
  }
  for (int64_t i = 0; i < pairs.count; ++i) {
    const E* dy = pairs.rows[i].dy;
    const E* x[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) x[r] = pairs.rows[i].x + (Listed ? offsets[r] : first + r);
    for (int64_t p = 0; p < voxels; ++p, dy += dy_step) {
      if constexpr (!Listed) __builtin_prefetch(x[0] + (p + ahead) * x_step);
      __builtin_prefetch(dy + ahead * dy_step);
      T gradient[V];
#pragma GCC unroll 16
      for (int v = 0; v + 1 < V; ++v) gradient[v] = T::load(dy + v * T::width);
      gradient[V - 1] = T::load(dy + (V - 1) * T::width, last_lanes);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const T value = T::broadcast(Listed ? x[r][p * x_step] : x[0][p * x_step + r]);
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) sum[r][v] = T::fma(value, gradient[v], sum[r][v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      E* to = dw + r * dw_step + v * T::width;
      (T::load(to) + sum[r][v]).store(to);
    }
  }
}

template <class T>
using OuterProduct = void (*)(const RowPairs<typename T::element>&, const int64_t*, int64_t, int64_t,
                              typename T::element*, int64_t);

template <int V, bool Listed, class T, int... R>
OuterProduct<T> outer_product_of(int64_t size, std::integer_sequence<int, R...>) {
  static constexpr OuterProduct<T> products[] = {outer_product<R + 1, V, Listed, T>...};
  return products[size - 1];
}

// dw[r, 0 .. filters) += these sums for r < count, as many at once as fit the registers.
template <bool Listed, class T>
void outer_products(const RowPairs<typename T::element>& pairs, const int64_t* offsets, int64_t count,
                    int64_t filters, typename T::element* dw, int64_t dw_step) {
  constexpr auto sizes = std::make_integer_sequence<int, row_tile>{};
  const bool two = filters > T::width;
  const int64_t parts = (count + row_tile - 1) / row_tile;
  for (int64_t part = 0, r = 0; part < parts; ++part) {
    const int64_t size = (count - r + parts - part - 1) / (parts - part);
    const auto run =
        two ? outer_product_of<2, Listed, T>(size, sizes) : outer_product_of<1, Listed, T>(size, sizes);
    run(pairs, Listed ? offsets + r : nullptr, r, two ? filters - T::width : filters, dw + r * dw_step,
        dw_step);
    r += size;
  }
}

// db[0 .. filters) += the sum of dy over the voxels.
template <class T>
void add_voxels(const typename T::element* dy, int64_t voxels, int64_t step, int64_t filters,
                typename T::element* db) {
  for (int64_t k = 0; k < filters; k += T::width) {
    const int64_t lanes = std::min(T::width, filters - k);
    T sum = T::load(db + k, lanes);
    for (int64_t p = 0; p < voxels; ++p) sum = sum + T::load(dy + p * step + k, lanes);
    sum.store(db + k, lanes);
  }
}

// The outputs whose tap at this offset lies inside the row: begin <= q < end.
struct Inside {
  int64_t begin, end;
};
inline Inside inside(const Axis& axis, int64_t offset) {
  const int64_t begin = offset >= 0 ? 0 : (-offset + axis.stride - 1) / axis.stride;
  const int64_t room = axis.input - offset;
  const int64_t end = room <= 0 ? 0 : std::min(axis.count, (room + axis.stride - 1) / axis.stride);
  return {std::min(begin, end), end};
}

constexpr int64_t most_row_pairs = 64;

// The rows [h0, h1) of an output plane: what is summed in registers at once. Ranges are ranges of these.
struct Unit {
  int64_t n, d, h0, h1;
};

inline Unit unit_of(const WeightGradient& call, int64_t unit) {
  const int64_t planes = call.axes[0].count, rows = call.axes[1].count;
  const int64_t chunks = (rows + call.rows - 1) / call.rows, plane = unit / chunks,
                h0 = unit % chunks * call.rows;
  return {plane / planes, plane % planes, h0, std::min(h0 + call.rows, rows)};
}

// A piece of Form::rows is a plane of taps for some blocks of filters, over a range.
template <class T>
void gradient_rows(const WeightGradient& call, int64_t piece) {
  using E = typename T::element;
  const auto& [depth, height, width] = call.axes;
  const auto taps_d = static_cast<int64_t>(depth.taps.size());
  const auto taps_h = static_cast<int64_t>(height.taps.size());
  const auto taps_w = static_cast<int64_t>(width.taps.size());
  const int64_t blocks = call.k_padded / call.k_block, shares = (blocks + call.blocks - 1) / call.blocks;
  const int64_t a = piece % taps_d, share = piece / taps_d % shares;
  const int64_t group = piece / (taps_d * shares) % call.groups;
  const int64_t range = piece / (taps_d * shares * call.groups);
  const int64_t k_begin = share * call.blocks * call.k_block;
  const int64_t k_end = std::min(k_begin + call.blocks * call.k_block, call.filters);

  const int64_t x_voxel = call.groups * call.channels, dy_voxel = call.groups * call.filters;
  const int64_t tap_rows = taps_w * call.channels;  // of dw
  E* partial = static_cast<E*>(call.partial) +
               (range * call.groups + group) * (taps_d * taps_h * tap_rows + 1) * call.k_padded;
  E* dw = partial + a * taps_h * tap_rows * call.k_padded;
  E* db = partial + taps_d * taps_h * tap_rows * call.k_padded;
  for (int64_t k = k_begin; k < k_end; k += call.k_block) {
    for (int64_t row = 0; row < taps_h * tap_rows; ++row) {
      std::fill_n(dw + row * call.k_padded + k, call.k_block, E{0});
    }
    if (a == 0) std::fill_n(db + k, call.k_block, E{0});
  }

  RowPair<E> rows[most_row_pairs];
  for (int64_t u = call.units * range / call.ranges; u < call.units * (range + 1) / call.ranges; ++u) {
    const auto [n, d, h0, h1] = unit_of(call, u);
    const E* dy = static_cast<const E*>(call.dy) +
                  (n * depth.count + d) * height.count * width.count * dy_voxel + group * call.filters;
    if (a == 0) {
      add_voxels<T>(dy + h0 * width.count * dy_voxel + k_begin, (h1 - h0) * width.count, dy_voxel,
                    k_end - k_begin, db + k_begin);
    }
    const int64_t i = d * depth.stride + depth.taps[static_cast<size_t>(a)].offset;
    if (i < 0 || i >= depth.input) continue;
    const E* x = static_cast<const E*>(call.x) +
                 (n * depth.input + i) * height.input * width.input * x_voxel + group * call.channels;
    for (int64_t k = k_begin; k < k_end; k += call.k_block) {
      for (int64_t b = 0; b < taps_h; ++b) {
        for (int64_t t = 0; t < taps_w; ++t) {
          const int64_t offset = width.taps[static_cast<size_t>(t)].offset;
          const Inside q = inside(width, offset);
          int64_t count = 0;
          for (int64_t h = h0; h < h1; ++h) {
            const int64_t j = h * height.stride + height.taps[static_cast<size_t>(b)].offset;
            if (j < 0 || j >= height.input) continue;
            rows[count++] = {x + (j * width.input + q.begin * width.stride + offset) * x_voxel,
                             dy + (h * width.count + q.begin) * dy_voxel + k};
          }
          outer_products<false, T>({rows, count, q.end - q.begin, width.stride * x_voxel, dy_voxel}, nullptr,
                                   call.channels, std::min(call.k_block, k_end - k),
                                   dw + (b * tap_rows + t * call.channels) * call.k_padded + k,
                                   call.k_padded);
        }
      }
    }
  }
}

// A piece of Form::small_channels has all taps of a block of filters, over a range. The taps read a
// copy of the input rows, [taps d][rows][voxels][channels], in which voxels outside the volume are zero.
template <class T>
void gradient_small_channels(const WeightGradient& call, int64_t piece, void* scratch) {
  using E = typename T::element;
  const auto& [depth, height, width] = call.axes;
  const auto taps_d = static_cast<int64_t>(depth.taps.size());
  const int64_t taps = taps_d * static_cast<int64_t>(height.taps.size() * width.taps.size());
  const int64_t blocks = call.k_padded / call.k_block;
  const int64_t block = piece % blocks, group = piece / blocks % call.groups;
  const int64_t range = piece / (blocks * call.groups);

  const int64_t x_voxel = call.groups * call.channels, dy_voxel = call.groups * call.filters;
  const int64_t x_row = width.input * x_voxel;
  const int64_t k = block * call.k_block, filters = std::min(call.k_block, call.filters - k);
  const int64_t first_w = width.taps.front().offset, first_h = height.taps.front().offset;
  const int64_t voxels = (width.count - 1) * width.stride + width.taps.back().offset - first_w + 1;
  const int64_t most_rows = (call.rows - 1) * height.stride + height.taps.back().offset - first_h + 1;
  const int64_t row = voxels * call.channels;
  auto* offsets = static_cast<int64_t*>(scratch);
  E* copy = reinterpret_cast<E*>(offsets + taps * call.channels);
  int64_t listed = 0;
  for (int64_t a = 0; a < taps_d; ++a) {
    for (const Tap& tap_h : height.taps) {
      for (const Tap& tap_w : width.taps) {
        for (int64_t c = 0; c < call.channels; ++c) {
          offsets[listed++] =
              (a * most_rows + tap_h.offset - first_h) * row + (tap_w.offset - first_w) * call.channels + c;
        }
      }
    }
  }
  E* dw = static_cast<E*>(call.partial) +
          (range * call.groups + group) * (taps * call.channels + 1) * call.k_padded + k;
  for (int64_t r = 0; r <= taps * call.channels; ++r) std::fill_n(dw + r * call.k_padded, call.k_block, E{0});

  RowPair<E> rows[most_row_pairs];
  for (int64_t u = call.units * range / call.ranges; u < call.units * (range + 1) / call.ranges; ++u) {
    const auto [n, d, h0, h1] = unit_of(call, u);
    const E* dy = static_cast<const E*>(call.dy) +
                  (n * depth.count + d) * height.count * width.count * dy_voxel + group * call.filters + k;
    add_voxels<T>(dy + h0 * width.count * dy_voxel, (h1 - h0) * width.count, dy_voxel, filters,
                  dw + taps * call.channels * call.k_padded);
    for (int64_t a = 0; a < taps_d; ++a) {
      const int64_t i = d * depth.stride + depth.taps[static_cast<size_t>(a)].offset;
      for (int64_t r = 0; r < most_rows; ++r) {
        const int64_t j = h0 * height.stride + first_h + r;
        E* to = copy + (a * most_rows + r) * row;
        if (i < 0 || i >= depth.input || j < 0 || j >= height.input) {
          std::fill_n(to, row, E{0});
        } else {
          gather_row<T>(static_cast<const E*>(call.x) + ((n * depth.input + i) * height.input + j) * x_row +
                            group * call.channels,
                        width.input, x_voxel, call.channels, first_w, voxels, to);
        }
      }
    }
    for (int64_t h = h0; h < h1; ++h) {
      rows[h - h0] = {copy + (h - h0) * height.stride * row, dy + h * width.count * dy_voxel};
    }
    outer_products<true, T>({rows, h1 - h0, width.count, width.stride * call.channels, dy_voxel}, offsets,
                            taps * call.channels, filters, dw, call.k_padded);
  }
}

// dw[t * dw_step ..] += sum over rows and voxels of x[p * x_step + t * tap_step ..] * dy[p * dy_step ..] for
// K taps of one vector of channels; several voxels at once hide the latency of the additions.
template <int K, class T>
void depthwise_products(const RowPairs<typename T::element>& pairs, int64_t tap_step, int64_t lanes,
                        typename T::element* dw, int64_t dw_step) {
  using E = typename T::element;
  constexpr int at_once = K >= 4 ? 2 : 12 / K / 2 * 2;
  T sum[at_once][K];
#pragma GCC unroll 16
  for (int u = 0; u < at_once; ++u) {
#pragma GCC unroll 16
    for (int t = 0; t < K; ++t) sum[u][t] = T::zero();
  }
  for (int64_t i = 0; i < pairs.count; ++i) {
    const E* x = pairs.rows[i].x;
    const E* dy = pairs.rows[i].dy;
    int64_t p = 0;
    for (; p + at_once <= pairs.voxels; p += at_once) {
#pragma GCC unroll 16
      for (int u = 0; u < at_once; ++u) {
        const T gradient = T::load(dy + (p + u) * pairs.dy_step, lanes);
#pragma GCC unroll 16
        for (int t = 0; t < K; ++t) {
          sum[u][t] = T::fma(T::load(x + (p + u) * pairs.x_step + t * tap_step, lanes), gradient, sum[u][t]);
        }
      }
    }
    for (; p < pairs.voxels; ++p) {
      const T gradient = T::load(dy + p * pairs.dy_step, lanes);
#pragma GCC unroll 16
      for (int t = 0; t < K; ++t) {
        sum[0][t] = T::fma(T::load(x + p * pairs.x_step + t * tap_step, lanes), gradient, sum[0][t]);
      }
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < K; ++t) {
#pragma GCC unroll 16
    for (int u = 1; u < at_once; ++u) sum[0][t] = sum[0][t] + sum[u][t];
    E* to = dw + t * dw_step;
    (T::load(to) + sum[0][t]).store(to);
  }
}

constexpr int most_depthwise_taps = 7;

template <class T, int... K>
auto depthwise_products_of(int64_t taps, std::integer_sequence<int, K...>) {
  using Products = decltype(&depthwise_products<1, T>);
  static constexpr Products products[] = {depthwise_products<K + 1, T>...};
  return products[taps - 1];
}

// A piece of a depthwise convolution is a vector of channels, over a range. The channels are the filters.
template <class T>
void gradient_depthwise(const WeightGradient& call, int64_t piece) {
  using E = typename T::element;
  const auto& [depth, height, width] = call.axes;
  const auto taps_w = static_cast<int64_t>(width.taps.size()),
             taps_h = static_cast<int64_t>(height.taps.size());
  const int64_t tap_rows = static_cast<int64_t>(depth.taps.size()) * taps_h;
  const int64_t vectors = call.k_padded / T::width, channels = call.filters;
  const int64_t c = piece % vectors * T::width, range = piece / vectors,
                lanes = std::min(T::width, channels - c);
  E* partial = static_cast<E*>(call.partial) + range * (tap_rows * taps_w + 1) * call.k_padded + c;
  for (int64_t r = 0; r <= tap_rows * taps_w; ++r) std::fill_n(partial + r * call.k_padded, T::width, E{0});

  RowPair<E> rows[most_row_pairs];
  for (int64_t u = call.units * range / call.ranges; u < call.units * (range + 1) / call.ranges; ++u) {
    const auto [n, d, h0, h1] = unit_of(call, u);
    const E* dy =
        static_cast<const E*>(call.dy) + (n * depth.count + d) * height.count * width.count * channels + c;
    add_voxels<T>(dy + h0 * width.count * channels, (h1 - h0) * width.count, channels, lanes,
                  partial + tap_rows * taps_w * call.k_padded);
    for (int64_t tap_row = 0; tap_row < tap_rows; ++tap_row) {
      const int64_t i = d * depth.stride + depth.taps[static_cast<size_t>(tap_row / taps_h)].offset;
      if (i < 0 || i >= depth.input) continue;
      const E* x =
          static_cast<const E*>(call.x) + (n * depth.input + i) * height.input * width.input * channels + c;
      // The sums over outputs [from, to) of the taps [t, t + count).
      const auto add = [&](int64_t t, int64_t count, int64_t from, int64_t to) {
        const int64_t offset = width.taps[static_cast<size_t>(t)].offset;
        const int64_t next = count > 1 ? width.taps[static_cast<size_t>(t + 1)].offset - offset : 0;
        int64_t pairs = 0;
        for (int64_t h = h0; h < h1; ++h) {
          const int64_t j = h * height.stride + height.taps[static_cast<size_t>(tap_row % taps_h)].offset;
          if (j < 0 || j >= height.input) continue;
          rows[pairs++] = {x + (j * width.input + from * width.stride + offset) * channels,
                           dy + (h * width.count + from) * channels};
        }
        const auto run =
            depthwise_products_of<T>(count, std::make_integer_sequence<int, most_depthwise_taps>{});
        run({rows, pairs, to - from, width.stride * channels, channels}, next * channels, lanes,
            partial + (tap_row * taps_w + t) * call.k_padded, call.k_padded);
      };
      for (int64_t t = 0; t < taps_w; t += most_depthwise_taps) {
        const int64_t count = std::min<int64_t>(most_depthwise_taps, taps_w - t);
        // Where all these taps lie inside the row they go together, elsewhere one by one.
        int64_t from = 0, to = width.count;
        for (int64_t u = t; u < t + count; ++u) {
          const Inside q = inside(width, width.taps[static_cast<size_t>(u)].offset);
          from = std::max(from, q.begin);
          to = std::min(to, q.end);
        }
        to = std::max(from, to);
        if (from < to) add(t, count, from, to);
        for (int64_t u = t; u < t + count; ++u) {
          const Inside q = inside(width, width.taps[static_cast<size_t>(u)].offset);
          if (q.begin < std::min(q.end, from)) add(u, 1, q.begin, std::min(q.end, from));
          if (std::max(q.begin, to) < q.end) add(u, 1, std::max(q.begin, to), q.end);
        }
      }
    }
  }
}

template <class T>
void weight_gradient(const WeightGradient& call, int64_t piece, void* scratch) {
  if (call.depthwise) {
    gradient_depthwise<T>(call, piece);
  } else if (call.form == Form::small_channels) {
    gradient_small_channels<T>(call, piece, scratch);
  } else {
    gradient_rows<T>(call, piece);
  }
}

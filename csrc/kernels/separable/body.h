// The kernels, over a vector V: Vec, or VecDouble. Included inside the level's namespace, once.

constexpr int most_blocks = 4;

template <class V, class T>
inline V load_up_to(const T* p, int64_t n) {
  return n == V::width ? V::load(p) : V::load(p, n);
}

template <bool stream, class V, class T>
inline void put(V v, T* p, int64_t n) {
  if constexpr (stream) {
    v.stream(p);
  } else if (n == V::width) {
    v.store(p);
  } else {
    v.store(p, n);
  }
}

// One output's taps on an axis.
template <class A>
struct Taps {
  int64_t count;
  const int64_t* index;
  const A* weight;
};

template <class A>
inline Taps<A> taps_of(const Map<A>& map, int64_t output) {
  return {map.count[output], map.index + output * map.taps, map.weight + output * map.taps};
}

// `blocks` vectors from offset i of the sum over taps of weight * x[index * step + i], the last of them with
// `last` elements. Not inlined, the sums would lie in memory.
template <int blocks, class V, class S>
inline __attribute__((always_inline)) void sum_taps(V* sum, const S* x, int64_t step,
                                                    Taps<typename V::element> taps, int64_t last) {
  if (taps.count == 2) {  // linear interpolation: worth a loop of its own
    const V weight = V::broadcast(taps.weight[0]), other = V::broadcast(taps.weight[1]);
    const S *from = x + taps.index[0] * step, *to = x + taps.index[1] * step;
#pragma GCC unroll 4
    for (int b = 0; b < blocks; ++b) {
      const int64_t n = b + 1 < blocks ? V::width : last;
      const V first = load_up_to<V>(from + b * V::width, n) * weight;
      sum[b] = V::fma(load_up_to<V>(to + b * V::width, n), other, first);
    }
    return;
  }
#pragma GCC unroll 4
  for (int b = 0; b < blocks; ++b) sum[b] = V::zero();
  for (int64_t k = 0; k < taps.count; ++k) {
    const V weight = V::broadcast(taps.weight[k]);
    const S* from = x + taps.index[k] * step;
#pragma GCC unroll 4
    for (int b = 0; b < blocks; ++b) {
      const V value = load_up_to<V>(from + b * V::width, b + 1 < blocks ? V::width : last);
      sum[b] = V::fma(value, weight, sum[b]);
    }
  }
}

// to[i] = sum over taps of weight * x[index * step + i] for i < n. Scratch, `to` in the type of the sums, has
// room for the whole last vector, which is filled with zeros. Inlined too: rows are short, and the taps would
// go through the stack.
template <bool stream, class V, class S, class R>
inline __attribute__((always_inline)) void combine(const S* x, int64_t step, Taps<typename V::element> taps,
                                                   int64_t n, R* to) {
  int64_t i = 0;
  V sum[most_blocks];
  for (; i + most_blocks * V::width <= n; i += most_blocks * V::width) {
    sum_taps<most_blocks>(sum, x + i, step, taps, V::width);
#pragma GCC unroll 4
    for (int b = 0; b < most_blocks; ++b) put<stream>(sum[b], to + i + b * V::width, V::width);
  }
  if (i + 2 * V::width <= n) {
    sum_taps<2>(sum, x + i, step, taps, V::width);
    put<stream>(sum[0], to + i, V::width);
    put<stream>(sum[1], to + i + V::width, V::width);
    i += 2 * V::width;
  }
  if (i + V::width <= n) {
    sum_taps<1>(sum, x + i, step, taps, V::width);
    put<stream>(sum[0], to + i, V::width);
    i += V::width;
  }
  if (i < n) {
    sum_taps<1>(sum, x + i, step, taps, n - i);
    if constexpr (std::is_same_v<R, typename V::element>) {
      sum[0].store(to + i);  // a load of a whole vector would wait for a masked store
    } else {
      put<stream>(sum[0], to + i, n - i);
    }
  }
}

// A row of the result in plain layout; row: w.in numbers with zeros after them. taps: 0 where there are many.
template <bool stream, Reach reach, int taps, class V, class R>
inline void plain_row_of(const Params<typename V::element>& p, const typename V::element* row, R* y) {
  const auto& lanes = p.lanes;
  const int64_t count = taps == 0 ? p.w.taps : taps;
  for (int64_t w = 0, at = 0; w < p.w.out; w += V::width) {
    V sum = V::zero();
#pragma GCC unroll 2
    for (int64_t k = 0; k < count; ++k, ++at) {
      const int32_t* lane = lanes.lane + at * V::width;
      const auto* from = row + lanes.base[at];
      V value;
      if constexpr (reach == Reach::vector) {
        value = V::pick(lane, V::load(from));
      } else if constexpr (reach == Reach::two_vectors) {
        value = V::pick(lane, V::load(from), V::load(from + V::width));
      } else {
        value = V::gather(row, lane);
      }
      sum = V::fma(value, V::load(lanes.weight + at * V::width), sum);
    }
    put<stream>(sum, y + w, std::min(V::width, p.w.out - w));
  }
}

template <bool stream, class V, class R>
inline void plain_row(const Params<typename V::element>& p, const typename V::element* row, R* y) {
  if (V::width == 1 || p.lanes.reach == Reach::two_vectors) {
    plain_row_of<stream, Reach::two_vectors, 0, V>(p, row, y);
  } else if (p.lanes.reach == Reach::anywhere) {
    plain_row_of<stream, Reach::anywhere, 0, V>(p, row, y);
  } else if (p.w.taps == 1) {
    plain_row_of<stream, Reach::vector, 1, V>(p, row, y);
  } else if (p.w.taps == 2) {
    plain_row_of<stream, Reach::vector, 2, V>(p, row, y);
  } else {
    plain_row_of<stream, Reach::vector, 0, V>(p, row, y);
  }
}

template <bool stream, int blocks, class V, class S, class R>
inline void voxel(const S* x, int64_t channels, Taps<typename V::element> taps, int64_t last, R* y) {
  V sum[blocks];
  sum_taps<blocks>(sum, x, channels, taps, last);
#pragma GCC unroll 4
  for (int b = 0; b < blocks; ++b) {
    put<stream>(sum[b], y + b * V::width, b + 1 < blocks ? V::width : last);
  }
}

template <bool stream>
inline void copy_bytes(const char* from, char* to, int64_t bytes) {
  for (; bytes >= VecBytes::width; bytes -= VecBytes::width, from += VecBytes::width, to += VecBytes::width) {
    if constexpr (stream) {
      VecBytes::load(from).stream(to);
    } else {
      VecBytes::load(from).store(to);
    }
  }
  if (bytes > 0) VecBytes::load(from, bytes).store(to, bytes);
}

// A row of the result in channels last; row: [w.in, channels].
template <bool stream, class V, class S, class R>
inline void channels_last_row(const Params<typename V::element>& p, const S* row, R* y) {
  if (std::is_same_v<S, R> && p.w.selects) {
    for (int64_t w = 0; w < p.w.out; ++w, y += p.channels) {
      copy_bytes<stream>(reinterpret_cast<const char*>(row + p.w.index[w] * p.channels),
                         reinterpret_cast<char*>(y), p.channels * int64_t{sizeof(R)});
    }
    return;
  }
  for (int64_t w = 0; w < p.w.out; ++w, y += p.channels) {
    const auto taps = taps_of(p.w, w);
    for (int64_t c = 0; c < p.channels;) {
      const int64_t left = p.channels - c;
      const int64_t blocks = std::min<int64_t>((left + V::width - 1) / V::width, most_blocks);
      const int64_t last = std::min(V::width, left - (blocks - 1) * V::width);
      if (blocks == 4) {
        voxel<stream, 4, V>(row + c, p.channels, taps, last, y + c);
      } else if (blocks == 3) {
        voxel<stream, 3, V>(row + c, p.channels, taps, last, y + c);
      } else if (blocks == 2) {
        voxel<stream, 2, V>(row + c, p.channels, taps, last, y + c);
      } else {
        voxel<stream, 1, V>(row + c, p.channels, taps, last, y + c);
      }
      c += blocks * V::width;
    }
  }
}

// The rows [begin, end) of a plane of the result. plane: the rows of x, from `first` on, summed over d.
template <bool stream, bool plain, class V, class S, class R>
inline void plane_rows(const Params<typename V::element>& p, const S* plane, int64_t first, int64_t begin,
                       int64_t end, typename V::element* row, R* y) {
  const int64_t length = p.w.in * p.channels;
  plane -= first * length;
  for (int64_t h = begin; h < end; ++h) {
    const auto taps = taps_of(p.h, h);
    R* to = y + h * p.row_step;
    if constexpr (plain) {
      combine<false, V>(plane, length, taps, length, row);
      plain_row<stream, V>(p, row, to);
    } else if (p.h.selects) {
      channels_last_row<stream, V>(p, plane + *taps.index * length, to);
    } else {
      combine<false, V>(plane, length, taps, length, row);
      channels_last_row<stream, V>(p, row, to);
    }
  }
}

// The slabs with d first.
template <bool stream, bool plain, class V, class S, class R>
inline void slabs_d_first(const Params<typename V::element>& p, int64_t slab_begin, int64_t slab_end,
                          typename V::element* scratch) {
  const int64_t length = p.w.in * p.channels, plane = p.h.in * length;
  auto* planes = scratch;
  auto* row = scratch + planes_scratch(p);
  std::fill(row + length, row + row_scratch(p), 0);
  for (int64_t slab = slab_begin; slab < slab_end; ++slab) {
    const int64_t d = slab % p.d.out, block = slab / p.d.out % p.blocks, image = slab / (p.d.out * p.blocks);
    const int64_t begin = block * p.rows, end = std::min(begin + p.rows, p.h.out);
    const auto* x = static_cast<const S*>(p.source) + image * p.d.in * plane;
    auto* y = static_cast<R*>(p.result) + image * p.image_step + d * p.plane_step;
    const auto taps = taps_of(p.d, d);
    if (p.d.selects) {
      plane_rows<stream, plain, V>(p, x + *taps.index * plane, 0, begin, end, row, y);
    } else {
      const int64_t first = p.first_row[block], rows = p.last_row[block] - first;
      combine<false, V>(x + first * length, plane, taps, rows * length, planes);
      plane_rows<stream, plain, V>(p, planes, first, begin, end, row, y);
    }
  }
}

// The slabs with w first.
template <bool stream, class V, class S, class R>
inline void slabs_w_first(const Params<typename V::element>& p, int64_t slab_begin, int64_t slab_end,
                          typename V::element* scratch) {
  using A = typename V::element;
  const int64_t in = p.w.in, out = p.w.out, plane = p.h.in * in, room = plane_room(p);
  A *sum = scratch + p.d.taps * room, *rows = sum + room;
  std::fill(rows, scratch + scratch_elements(p), A{0});
  const A one = 1;
  const int64_t zero = 0;
  int64_t kept[most_planes];  // the planes of x that scratch holds, summed over w
  int64_t kept_of = -1;       // and the image and block that they are of
  for (int64_t slab = slab_begin; slab < slab_end; ++slab) {
    const int64_t d = slab % p.d.out, block = slab / p.d.out % p.blocks, image = slab / (p.d.out * p.blocks);
    const int64_t begin = block * p.rows, end = std::min(begin + p.rows, p.h.out);
    const int64_t first = p.first_row[block], count = p.last_row[block] - first;
    const auto* x = static_cast<const S*>(p.source) + image * p.d.in * plane + first * in;
    auto* y = static_cast<R*>(p.result) + image * p.image_step + d * p.plane_step;
    if (slab / p.d.out != kept_of) std::fill_n(kept, most_planes, -1);
    kept_of = slab / p.d.out;
    const auto taps = taps_of(p.d, d);
    int64_t places[most_planes];
    for (int64_t k = 0; k < taps.count; ++k) {
      const int64_t from = taps.index[k], at = places[k] = from % p.d.taps;
      if (kept[at] == from) continue;
      kept[at] = from;
      // All rows before any is picked from: a load waits for a store that it straddles.
      combine<false, V>(x + from * plane, 0, Taps<A>{1, &zero, &one}, count * in, rows);
      for (int64_t i = 0; i < count; ++i) {
        plain_row<false, V>(p, rows + i * in, scratch + at * room + i * out);
      }
    }
    const A* from = scratch + places[0] * room;
    if (!p.d.selects) {
      combine<false, V>(scratch, room, Taps<A>{taps.count, places, taps.weight}, count * out, sum);
      from = sum;
    }
    from -= first * out;
    for (int64_t h = begin; h < end; ++h) {
      combine<stream, V>(from, out, taps_of(p.h, h), out, y + h * p.row_step);
    }
  }
}

template <bool stream, bool plain, class V, class S, class R>
inline void slabs(const Params<typename V::element>& p, int64_t slab_begin, int64_t slab_end,
                  typename V::element* scratch) {
  if constexpr (plain && sizeof(R) < sizeof(typename V::element)) {
    if (p.w_first) return slabs_w_first<stream, V, S, R>(p, slab_begin, slab_end, scratch);
  }
  slabs_d_first<stream, plain, V, S, R>(p, slab_begin, slab_end, scratch);
}

template <bool plain, class V, class S, class R>
inline void run(const Params<typename V::element>& p, int64_t slab_begin, int64_t slab_end,
                typename V::element* scratch) {
  if (p.stream) {
    slabs<true, plain, V, S, R>(p, slab_begin, slab_end, scratch);
    VecBytes::stream_end();
  } else {
    slabs<false, plain, V, S, R>(p, slab_begin, slab_end, scratch);
  }
}

#define VOLNET_DEFINE(NAME, PLAIN, V, S, R)                                                 \
  void NAME(const Params<V::element>& p, int64_t begin, int64_t end, V::element* scratch) { \
    run<PLAIN, V, S, R>(p, begin, end, scratch);                                            \
  }
VOLNET_DEFINE(plain_f32, true, Vec, float, float)
VOLNET_DEFINE(plain_bf16, true, Vec, bfloat16, bfloat16)
VOLNET_DEFINE(plain_i16, true, Vec, int16_t, int16_t)
VOLNET_DEFINE(plain_i16_f32, true, Vec, int16_t, float)
VOLNET_DEFINE(plain_f32_i16, true, Vec, float, int16_t)
VOLNET_DEFINE(channels_last_f32, false, Vec, float, float)
VOLNET_DEFINE(channels_last_bf16, false, Vec, bfloat16, bfloat16)

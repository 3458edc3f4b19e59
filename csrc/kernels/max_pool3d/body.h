// The vector kernels, over Vec. Included inside the level's namespace, once.

using pooling::Axis;
using pooling::Range;
using pooling::taps_inside;

constexpr int32_t no_place = std::numeric_limits<int32_t>::max();

// Place of the row of voxels (d, h) of the window, from the first one inside the volume.
inline int32_t row_place(const Params& p, Range d, Range h, int64_t i, int64_t j) {
  return static_cast<int32_t>(((i - d.begin) * p.d.dilation * p.h.in + (j - h.begin) * p.h.dilation) *
                              p.w.in);
}

// Maximum over (d, h) of columns [w, w + n) into scratch; places count from the window's first row.
template <bool with_indices, class T>
inline void reduce_column(const Params& p, const T* x, Range d, Range h, int64_t w, int64_t n, float* values,
                          int32_t* places) {
  const int64_t step_h = p.h.dilation * p.w.in;
  const int64_t step_d = p.d.dilation * p.h.in * p.w.in;
  const bool whole = n == Vec::width;
  Vec best = Vec::broadcast(-std::numeric_limits<float>::infinity());
  VecInt place = VecInt::broadcast(0);
  for (int64_t i = d.begin; i < d.end; ++i) {
    const T* row = x + (i - d.begin) * step_d + w;
    for (int64_t j = h.begin; j < h.end; ++j, row += step_h) {
      const Vec value = whole ? Vec::load(row) : Vec::load(row, n);
      const auto wins = Vec::greater_or_nan(value, best);
      best = Vec::select(wins, value, best);
      if constexpr (with_indices) {
        place = VecInt::select(wins, VecInt::broadcast(row_place(p, d, h, i, j)), place);
      }
    }
  }
  if (whole) {
    best.store(values + w);
  } else {
    best.store(values + w, n);
  }
  if constexpr (with_indices) {
    place = place + VecInt::iota() + VecInt::broadcast(static_cast<int32_t>(w));
    if (whole) {
      place.store(places + w);
    } else {
      int32_t lanes[Vec::width];
      place.store(lanes);
      std::memcpy(places + w, lanes, static_cast<size_t>(n) * sizeof *lanes);
    }
  }
}

// Elements p[0], p[stride], p[2 * stride], ...; stride 0 stands for one that is only known in `offsets`.
template <int stride, class V, class E>
inline V load_strided(const E* p, VecInt offsets) {
  if constexpr (stride == 1) {
    return V::load(p);
  } else if constexpr (stride == 2) {
    return V::even(V::load(p), V::load(p + Vec::width));
  } else {
    return offsets.gather(p);
  }
}

// A stride that stands for none: voxels[j, w] says which column is tap j of window w.
constexpr int tabled = -1;

// Maximum across w. Columns were reduced first, so scan order shows in the places: the first among equals,
// the last among NaNs.
template <bool with_indices, int stride, class T>
inline void reduce_row(const Params& p, const float* values, const int32_t* places, const int32_t* voxels,
                       T* y, int32_t* y_places) {
  constexpr int step = stride == tabled ? 0 : stride;
  VecInt offsets = VecInt::iota() * VecInt::broadcast(static_cast<int32_t>(p.w.stride));
  for (int64_t w = 0; w < p.w.out; w += Vec::width) {
    Vec best = Vec::broadcast(-std::numeric_limits<float>::infinity());
    VecInt place = VecInt::broadcast(no_place);
    for (int64_t j = 0; j < p.w.kernel; ++j) {
      int64_t from = w * p.w.stride + j * p.w.dilation;
      if constexpr (stride == tabled) {
        offsets = VecInt::load(voxels + j * padded_outputs(p) + w);
        from = 0;
      }
      const Vec value = load_strided<step, Vec>(values + from, offsets);
      if constexpr (with_indices) {
        const VecInt at = load_strided<step, VecInt>(places + from, offsets);
        const auto earlier = Vec::both(Vec::equal(value, best), VecInt::less(at, place));
        const auto last_nan =
            Vec::both(Vec::is_nan(value), Vec::either(Vec::equal(best, best), VecInt::less(place, at)));
        const auto wins = Vec::either(Vec::either(Vec::greater(value, best), earlier), last_nan);
        best = Vec::select(wins, value, best);
        place = VecInt::select(wins, at, place);
      } else {
        best = Vec::select(Vec::greater_or_nan(value, best), value, best);
      }
    }
    if (p.w.out - w >= Vec::width) {
      best.store(y + w);
    } else {
      best.store(y + w, p.w.out - w);
    }
    if constexpr (with_indices) place.store(y_places + w);
  }
}

// Index: int64_t or int32_t; void for none.
template <class Index, class T>
void forward_plain_rows(const Params& p, int64_t row_begin, int64_t row_end, void* scratch) {
  constexpr bool with_indices = !std::is_void_v<Index>;
  const T* x = static_cast<const T*>(p.x);
  const int64_t length = padded_row(p);
  float* values = static_cast<float*>(scratch);
  int32_t* places = reinterpret_cast<int32_t*>(values + length);
  int32_t* y_places = places + length;
  int32_t* voxels = y_places + padded_outputs(p);
  std::fill_n(values, length, -std::numeric_limits<float>::infinity());
  if constexpr (with_indices) std::fill_n(places, length, no_place);
  if (p.w.windows) {
    std::fill_n(voxels, p.w.kernel * padded_outputs(p), static_cast<int32_t>(length - 1));  // never a maximum
    for (int64_t w = 0; w < p.w.out; ++w) {
      const Range window = p.w.windows[w];
      for (int64_t j = 0; j < window.size(); ++j) {
        voxels[j * padded_outputs(p) + w] = static_cast<int32_t>(window.begin + j);
      }
    }
  }

  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t oh = row % p.h.out, od = row / p.h.out % p.d.out, plane = row / (p.h.out * p.d.out);
    const Range d = taps_inside(p.d, od), h = taps_inside(p.h, oh);
    T* y = static_cast<T*>(p.y) + row * p.w.out;
    if (d.empty() || h.empty()) {
      std::fill_n(y, p.w.out, from_float<T>(-std::numeric_limits<float>::infinity()));
      if constexpr (with_indices) {
        std::fill_n(static_cast<Index*>(p.indices) + row * p.w.out, p.w.out, Index{-1});
      }
      continue;
    }
    const int64_t base = (position(p.d, od, d.begin) * p.h.in + position(p.h, oh, h.begin)) * p.w.in;
    const T* first = x + plane * p.d.in * p.h.in * p.w.in + base;
    for (int64_t w = 0; w < p.w.in; w += Vec::width) {
      const int64_t n = std::min(Vec::width, p.w.in - w);
      reduce_column<with_indices>(p, first, d, h, w, n, values + p.w.padding, places + p.w.padding);
    }
    if (p.w.windows) {
      reduce_row<with_indices, tabled>(p, values, places, voxels, y, y_places);
    } else if (p.w.stride == 1) {
      reduce_row<with_indices, 1>(p, values, places, voxels, y, y_places);
    } else if (p.w.stride == 2) {
      reduce_row<with_indices, 2>(p, values, places, voxels, y, y_places);
    } else {
      reduce_row<with_indices, 0>(p, values, places, voxels, y, y_places);
    }
    if constexpr (with_indices) {
      Index* indices = static_cast<Index*>(p.indices) + row * p.w.out;
      for (int64_t w = 0; w < p.w.out; ++w) {
        indices[w] = y_places[w] == no_place ? Index{-1} : static_cast<Index>(base + y_places[w]);
      }
    }
  }
}

// One output voxel, `blocks` vectors of channels, the last of them with `last` channels. x: the channels'
// first element in the plane.
template <class Index, int blocks, class T>
inline void pool_voxel(const Params& p, const T* x, Range d, Range h, Range w, int64_t od, int64_t oh,
                       int64_t ow, int64_t last, T* y, Index* indices) {
  constexpr bool with_indices = !std::is_void_v<Index>;
  Vec best[blocks];
  VecInt place[blocks];
  for (int b = 0; b < blocks; ++b) {
    best[b] = Vec::broadcast(-std::numeric_limits<float>::infinity());
    place[b] = VecInt::broadcast(0);
  }
  const int64_t base = (position(p.d, od, d.begin) * p.h.in + position(p.h, oh, h.begin)) * p.w.in +
                       position(p.w, ow, w.begin);
  const int64_t step_w = p.w.dilation * p.channels;
  for (int64_t i = d.begin; i < d.end; ++i) {
    for (int64_t j = h.begin; j < h.end; ++j) {
      int32_t at = row_place(p, d, h, i, j);
      const T* voxel = x + (base + at) * p.channels;
      for (int64_t k = w.begin; k < w.end; ++k, voxel += step_w, at += static_cast<int32_t>(p.w.dilation)) {
        for (int b = 0; b < blocks; ++b) {
          const T* from = voxel + b * Vec::width;
          const Vec value = b + 1 < blocks || last == Vec::width ? Vec::load(from) : Vec::load(from, last);
          const auto wins = Vec::greater_or_nan(value, best[b]);
          best[b] = Vec::select(wins, value, best[b]);
          if constexpr (with_indices) place[b] = VecInt::select(wins, VecInt::broadcast(at), place[b]);
        }
      }
    }
  }
  for (int b = 0; b < blocks; ++b) {
    const int64_t n = b + 1 < blocks ? Vec::width : last;
    if (n == Vec::width) {
      best[b].store(y + b * Vec::width);
    } else {
      best[b].store(y + b * Vec::width, n);
    }
    if constexpr (with_indices) {
      int32_t lanes[Vec::width];
      place[b].store(lanes);
      for (int64_t c = 0; c < n; ++c) indices[b * Vec::width + c] = static_cast<Index>(base + lanes[c]);
    }
  }
}

template <class Index, class T>
void forward_channels_last_rows(const Params& p, int64_t row_begin, int64_t row_end) {
  constexpr bool with_indices = !std::is_void_v<Index>;
  constexpr int most = 4;
  const int64_t channels = p.channels;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t oh = row % p.h.out, od = row / p.h.out % p.d.out, image = row / (p.h.out * p.d.out);
    const Range d = taps_inside(p.d, od), h = taps_inside(p.h, oh);
    const T* x = static_cast<const T*>(p.x) + image * p.d.in * p.h.in * p.w.in * channels;
    for (int64_t ow = 0; ow < p.w.out; ++ow) {
      const Range w = taps_inside(p.w, ow);
      const int64_t out = (row * p.w.out + ow) * channels;
      T* y = static_cast<T*>(p.y) + out;
      if (d.empty() || h.empty() || w.empty()) {
        std::fill_n(y, channels, from_float<T>(-std::numeric_limits<float>::infinity()));
        if constexpr (with_indices) std::fill_n(static_cast<Index*>(p.indices) + out, channels, Index{-1});
        continue;
      }
      for (int64_t c = 0; c < channels;) {
        const int64_t blocks = std::min<int64_t>((channels - c + Vec::width - 1) / Vec::width, most);
        const int64_t last = std::min(Vec::width, channels - c - (blocks - 1) * Vec::width);
        Index* places = nullptr;
        if constexpr (with_indices) places = static_cast<Index*>(p.indices) + out + c;
        if (blocks == 4) {
          pool_voxel<Index, 4>(p, x + c, d, h, w, od, oh, ow, last, y + c, places);
        } else if (blocks == 3) {
          pool_voxel<Index, 3>(p, x + c, d, h, w, od, oh, ow, last, y + c, places);
        } else if (blocks == 2) {
          pool_voxel<Index, 2>(p, x + c, d, h, w, od, oh, ow, last, y + c, places);
        } else {
          pool_voxel<Index, 1>(p, x + c, d, h, w, od, oh, ow, last, y + c, places);
        }
        c += blocks * Vec::width;
      }
    }
  }
}

template <class T>
void forward_plain(const Params& p, int64_t row_begin, int64_t row_end, void* scratch) {
  if (p.indices == nullptr) {
    forward_plain_rows<void, T>(p, row_begin, row_end, scratch);
  } else if (p.narrow) {
    forward_plain_rows<int32_t, T>(p, row_begin, row_end, scratch);
  } else {
    forward_plain_rows<int64_t, T>(p, row_begin, row_end, scratch);
  }
}

template <class T>
void forward_channels_last(const Params& p, int64_t row_begin, int64_t row_end) {
  if (p.indices == nullptr) {
    forward_channels_last_rows<void, T>(p, row_begin, row_end);
  } else if (p.narrow) {
    forward_channels_last_rows<int32_t, T>(p, row_begin, row_end);
  } else {
    forward_channels_last_rows<int64_t, T>(p, row_begin, row_end);
  }
}

void forward_plain_f32(const Params& p, int64_t begin, int64_t end, void* scratch) {
  forward_plain<float>(p, begin, end, scratch);
}
void forward_plain_bf16(const Params& p, int64_t begin, int64_t end, void* scratch) {
  forward_plain<bfloat16>(p, begin, end, scratch);
}
void forward_channels_last_f32(const Params& p, int64_t begin, int64_t end, void*) {
  forward_channels_last<float>(p, begin, end);
}
void forward_channels_last_bf16(const Params& p, int64_t begin, int64_t end, void*) {
  forward_channels_last<bfloat16>(p, begin, end);
}

// Where p[0, n) are, counted from `first`: as far as int32_t reaches. Lanes past n are of no meaning.
inline VecInt places_from(const int32_t* p, int64_t n, int64_t first) {
  VecInt places;
  if (n == Vec::width) {
    places = VecInt::load(p);
  } else {
    const Vec lanes = Vec::load(reinterpret_cast<const float*>(p), n);
    std::memcpy(&places, &lanes, sizeof places);
  }
  return places + VecInt::broadcast(static_cast<int32_t>(-first));
}
inline VecInt places_from(const int64_t* p, int64_t n, int64_t first) {
  constexpr int64_t most = no_place;
  int32_t lanes[Vec::width];
  if (n == Vec::width) {
    for (int64_t i = 0; i < Vec::width; ++i) {
      lanes[i] = static_cast<int32_t>(std::clamp(p[i] - first, -most, most));
    }
  } else {
    for (int64_t i = 0; i < Vec::width; ++i) {
      lanes[i] = i < n ? static_cast<int32_t>(std::clamp(p[i] - first, -most, most)) : no_place;
    }
  }
  return VecInt::load(lanes);
}

// Which lanes of places equal a number.
class Equals {
 public:
  explicit inline Equals(int32_t value)
      : below_(VecInt::broadcast(value - 1)), above_(VecInt::broadcast(value + 1)) {}
  inline Vec::Mask operator()(VecInt places) const {
    return Vec::both(VecInt::less(below_, places), VecInt::less(places, above_));
  }

 private:
  VecInt below_, above_;
};

// What a vector of windows brings to `count` taps of a row of dx that begins at `first`. dy, indices: the
// windows' first element in the plane; from: minus their first tap; values: of the first of the taps.
template <int count, class Index, class T>
inline void gather_taps(const BackwardParams& p, const T* dy, const Index* indices, Range d, Range h,
                        int64_t n, int64_t first, VecInt from, int64_t tap, float* values, int64_t pitch) {
  Vec sum[count];
  for (int j = 0; j < count; ++j) sum[j] = Vec::zero();
  for (int64_t i = d.begin; i < d.end; ++i) {
    for (int64_t k = h.begin; k < h.end; ++k) {
      const int64_t at = (i * p.h.out + k) * p.w.out;
      const VecInt distance = places_from(indices + at, n, first) + from;
      const Vec gradient = n == Vec::width ? Vec::load(dy + at) : Vec::load(dy + at, n);
      for (int j = 0; j < count; ++j) {
        const Equals named(static_cast<int32_t>((tap + j) * p.w.dilation));
        sum[j] = Vec::select(named(distance), sum[j] + gradient, sum[j]);
      }
    }
  }
  for (int j = 0; j < count; ++j) sum[j].store(values + j * pitch);
}

// Plain: rows of dx, each from the rows of windows that reach to it. A window's gradient goes to the tap that
// its index names, and rows of taps make the row of dx.
template <class Index, class T, class Writer>
void gather_plain_rows(const BackwardParams& p, int64_t row_begin, int64_t row_end, float* scratch,
                       Writer& out) {
  using pooling::outputs_touching;
  const int64_t pitch = pooling::spread_row_length(p.w), row_values = p.w.kernel * pitch;
  const int64_t at_once = pooling::rows_at_once(p.w), table_rows = pooling::most_outputs(p.w);
  float* values = scratch + pooling::spread_left(p.w);
  auto* minus_first_taps = reinterpret_cast<int32_t*>(scratch + at_once * row_values);
  int32_t* table = minus_first_taps + pooling::round_up(p.w.out);
  T* dx = reinterpret_cast<T*>(table + pooling::spread_table_length(p.w));
  std::fill_n(scratch, at_once * row_values, 0.0f);
  std::fill_n(minus_first_taps, pooling::round_up(p.w.out), 0);
  for (int64_t w = 0; w < p.w.out; ++w) minus_first_taps[w] = static_cast<int32_t>(-position(p.w, w, 0));
  fill_spread_table(p.w, pitch, pooling::round_up(p.w.out), table);

  pooling::RowAt at(row_begin, p.d.in, p.h.in);
  for (int64_t row = row_begin; row < row_end;) {
    const int64_t rows = std::min(at_once, row_end - row);
    for (int64_t r = 0; r < rows; ++r, at.next()) {
      const Range d = outputs_touching(p.d, at.d, at.d + 1), h = outputs_touching(p.h, at.h, at.h + 1);
      const int64_t first = (at.d * p.h.in + at.h) * p.w.in;
      for (int64_t w = 0; w < p.w.out; w += Vec::width) {
        const int64_t n = std::min(Vec::width, p.w.out - w);
        const int64_t offset = at.plane * p.d.out * p.h.out * p.w.out + w;
        const T* dy = static_cast<const T*>(p.dy) + offset;
        const Index* indices = static_cast<const Index*>(p.indices) + offset;
        const VecInt from = VecInt::load(minus_first_taps + w);
        for (int64_t j = 0; j < p.w.kernel;) {
          float* to = values + r * row_values + j * pitch + w;
          if (p.w.kernel - j >= 3) {
            gather_taps<3>(p, dy, indices, d, h, n, first, from, j, to, pitch);
            j += 3;
          } else if (p.w.kernel - j == 2) {
            gather_taps<2>(p, dy, indices, d, h, n, first, from, j, to, pitch);
            j += 2;
          } else {
            gather_taps<1>(p, dy, indices, d, h, n, first, from, j, to, pitch);
            j += 1;
          }
        }
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      spread_row(p.w, values + r * row_values, pitch, table, table_rows, dx + r * p.w.in);
    }
    out.copy(reinterpret_cast<const char*>(dx), rows * p.w.in * static_cast<int64_t>(sizeof(T)));
    row += rows;
  }
  out.finish();
}

// Which lanes i < n of p[i] name a place.
template <class Index>
class Names;
template <>
class Names<int64_t> {
 public:
  explicit inline Names(int64_t place) : place_(place) {}
  inline Vec::Mask operator()(const int64_t* p, int64_t n) const { return Vec::equal(p, n, place_); }

 private:
  int64_t place_;
};
template <>
class Names<int32_t> {
 public:
  explicit inline Names(int64_t place) : equals_(static_cast<int32_t>(place)) {}
  inline Vec::Mask operator()(const int32_t* p, int64_t n) const { return equals_(places_from(p, n, 0)); }

 private:
  Equals equals_;
};

// One voxel of dx, `blocks` vectors of channels, the last of them with `last` channels. dy, indices: the
// channels' first element in the image.
template <int blocks, class T, class Index>
inline void gather_voxel(const BackwardParams& p, const T* dy, const Index* indices, Range d, Range h,
                         Range w, int64_t place, int64_t last, T* dx) {
  const Names<Index> names(place);
  Vec sum[blocks];
  for (int b = 0; b < blocks; ++b) sum[b] = Vec::zero();
  for (int64_t i = d.begin; i < d.end; ++i) {
    for (int64_t j = h.begin; j < h.end; ++j) {
      int64_t o = ((i * p.h.out + j) * p.w.out + w.begin) * p.channels;
      for (int64_t k = w.begin; k < w.end; ++k, o += p.channels) {
        for (int b = 0; b < blocks; ++b) {
          const int64_t at = o + b * Vec::width, n = b + 1 < blocks ? Vec::width : last;
          const Vec gradient = n == Vec::width ? Vec::load(dy + at) : Vec::load(dy + at, n);
          sum[b] = Vec::select(names(indices + at, n), sum[b] + gradient, sum[b]);
        }
      }
    }
  }
  for (int b = 0; b + 1 < blocks; ++b) sum[b].store(dx + b * Vec::width);
  if (last == Vec::width) {
    sum[blocks - 1].store(dx + (blocks - 1) * Vec::width);
  } else {
    sum[blocks - 1].store(dx + (blocks - 1) * Vec::width, last);
  }
}

// Channels last.
template <class Index, class T, class Writer>
void gather_rows(const BackwardParams& p, int64_t row_begin, int64_t row_end, float* scratch, Writer& out) {
  using pooling::outputs_touching;
  auto* windows = reinterpret_cast<int32_t*>(scratch);
  T* row_dx = reinterpret_cast<T*>(windows + 2 * pooling::round_up(p.w.in));
  for (int64_t w = 0; w < p.w.in; ++w) {
    const Range of = outputs_touching(p.w, w, w + 1);
    windows[2 * w] = static_cast<int32_t>(of.begin);
    windows[2 * w + 1] = static_cast<int32_t>(of.end);
  }
  pooling::RowAt row(row_begin, p.d.in, p.h.in);
  for (int64_t remaining = row_end - row_begin; remaining > 0; --remaining, row.next()) {
    const int64_t h = row.h, d = row.d, image = row.plane;
    const Range od = outputs_touching(p.d, d, d + 1), oh = outputs_touching(p.h, h, h + 1);
    const int64_t offset = image * p.d.out * p.h.out * p.w.out * p.channels;
    const T* dy = static_cast<const T*>(p.dy) + offset;
    const Index* indices = static_cast<const Index*>(p.indices) + offset;
    for (int64_t w = 0; w < p.w.in; ++w) {
      const Range ow{windows[2 * w], windows[2 * w + 1]};
      const int64_t place = (d * p.h.in + h) * p.w.in + w;
      T* dx = row_dx + w * p.channels;
      for (int64_t c = 0; c < p.channels;) {
        const int64_t blocks = std::min<int64_t>((p.channels - c + Vec::width - 1) / Vec::width, 2);
        const int64_t last = std::min(Vec::width, p.channels - c - (blocks - 1) * Vec::width);
        if (blocks == 2) {
          gather_voxel<2>(p, dy + c, indices + c, od, oh, ow, place, last, dx + c);
        } else {
          gather_voxel<1>(p, dy + c, indices + c, od, oh, ow, place, last, dx + c);
        }
        c += blocks * Vec::width;
      }
    }
    out.copy(reinterpret_cast<const char*>(row_dx), p.w.in * p.channels * static_cast<int64_t>(sizeof(T)));
  }
  out.finish();
}

template <class Index, class T, class Writer>
void gather_to(const BackwardParams& p, int64_t row_begin, int64_t row_end, float* scratch, Writer& out) {
  if (p.channels == 1) {
    gather_plain_rows<Index, T>(p, row_begin, row_end, scratch, out);
  } else {
    gather_rows<Index, T>(p, row_begin, row_end, scratch, out);
  }
}

template <class T, class Writer>
void gather(const BackwardParams& p, int64_t row_begin, int64_t row_end, float* scratch, Writer&& out) {
  if (p.narrow) {
    gather_to<int32_t, T>(p, row_begin, row_end, scratch, out);
  } else {
    gather_to<int64_t, T>(p, row_begin, row_end, scratch, out);
  }
}

template <class T>
void backward_gather(const BackwardParams& p, int64_t row_begin, int64_t row_end, float* scratch) {
  char* dx = reinterpret_cast<char*>(static_cast<T*>(p.dx) + row_begin * p.w.in * p.channels);
  if (p.stream) {
    gather<T>(p, row_begin, row_end, scratch, Streamed(dx));
  } else {
    gather<T>(p, row_begin, row_end, scratch, Direct{dx});
  }
}

void backward_gather_f32(const BackwardParams& p, int64_t begin, int64_t end, float* scratch) {
  backward_gather<float>(p, begin, end, scratch);
}
void backward_gather_bf16(const BackwardParams& p, int64_t begin, int64_t end, float* scratch) {
  backward_gather<bfloat16>(p, begin, end, scratch);
}

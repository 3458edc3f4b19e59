// The vector kernels, over Vec. Included inside the level's namespace, once.

using pooling::outputs_touching;
using pooling::Range;
using pooling::taps_inside;

constexpr int most_blocks = 4;

template <class T>
inline Vec load_up_to(const T* p, int64_t n) {
  return n == Vec::width ? Vec::load(p) : Vec::load(p, n);
}

template <class T>
inline void store_up_to(Vec v, T* p, int64_t n) {
  if (n == Vec::width) {
    v.store(p);
  } else {
    v.store(p, n);
  }
}

// Elements p[0], p[stride], p[2 * stride], ...; stride 0 stands for one that is only known in `offsets`.
template <int stride>
inline Vec load_strided(const float* p, VecInt offsets) {
  if constexpr (stride == 1) {
    return Vec::load(p);
  } else if constexpr (stride == 2) {
    return Vec::even(Vec::load(p), Vec::load(p + Vec::width));
  } else {
    return offsets.gather(p);
  }
}

// Sums over (d, h) of `blocks` vectors of columns, the last of them with `last` columns. x: the columns'
// first element at the window's first tap.
template <int blocks, class T>
inline void sum_columns(const Params& p, const T* x, int64_t taps_d, int64_t taps_h, int64_t last,
                        float* sums) {
  Vec sum[blocks];
  for (int b = 0; b < blocks; ++b) sum[b] = Vec::zero();
  for (int64_t i = 0; i < taps_d; ++i) {
    const T* row = x + i * p.h.in * p.w.in;
    for (int64_t j = 0; j < taps_h; ++j, row += p.w.in) {
      for (int b = 0; b < blocks; ++b) {
        sum[b] = sum[b] + load_up_to(row + b * Vec::width, b + 1 < blocks ? Vec::width : last);
      }
    }
  }
  for (int b = 0; b < blocks; ++b) sum[b].store(sums + b * Vec::width);  // lanes past the row are zero
}

// The windows of a row from the columns' sums, tap by tap of Vec::width windows.
template <int stride, class R>
inline void sum_row(const Params& p, const float* sums, const float* divisors, Vec row, R* y) {
  const VecInt offsets = VecInt::iota() * VecInt::broadcast(static_cast<int32_t>(p.w.stride));
  for (int64_t w = 0; w < p.w.out; w += Vec::width) {
    Vec sum = Vec::zero();
    for (int64_t j = 0; j < p.w.kernel; ++j) {
      sum = sum + load_strided<stride>(sums + w * p.w.stride + j, offsets);
    }
    const Vec mean = sum / (row * Vec::load(divisors + w));
    store_up_to(mean, y + w, std::min(Vec::width, p.w.out - w));
  }
}

// The same where voxels[j, w] says which column is tap j of window w.
template <class R>
inline void gather_row(const Params& p, const float* sums, const int32_t* voxels, const float* divisors,
                       Vec row, R* y) {
  for (int64_t w = 0; w < p.w.out; w += Vec::width) {
    Vec sum = Vec::zero();
    for (int64_t j = 0; j < p.w.kernel; ++j) {
      sum = sum + VecInt::load(voxels + j * round_up(p.w.out) + w).gather(sums);
    }
    const Vec mean = sum / (row * Vec::load(divisors + w));
    store_up_to(mean, y + w, std::min(Vec::width, p.w.out - w));
  }
}

// The same, window by window.
template <class R>
inline void sum_row_in_runs(const Params& p, const float* sums, const float* divisors, float row, R* y) {
  for (int64_t w = 0; w < p.w.out; ++w) {
    const Range taps = taps_inside(p.w, w);
    const float* run = sums + p.w.padding + position(p.w, w, taps.begin);
    Vec sum = Vec::zero();
    for (int64_t j = 0; j < taps.size(); j += Vec::width) {
      sum = sum + load_up_to(run + j, std::min(Vec::width, taps.size() - j));
    }
    y[w] = from_float<R>(sum.sum() / (row * divisors[w]));
  }
}

template <class T, class R>
void forward_plain_rows(const Params& p, int64_t row_begin, int64_t row_end, float* scratch) {
  const int64_t length = forward_row(p), columns = round_up(p.w.out);
  const bool runs = sums_runs(p.w), gathers = gathers_windows(p.w);
  float* sums = scratch;
  float* divisors = scratch + length;
  auto* voxels = reinterpret_cast<int32_t*>(divisors + columns);
  std::fill_n(sums, length, 0.0f);
  std::fill_n(divisors, columns, 1.0f);
  for (int64_t w = 0; w < p.w.out; ++w) divisors[w] = static_cast<float>(column_divisor(p, w));
  if (gathers) {
    std::fill_n(voxels, p.w.kernel * columns, static_cast<int32_t>(length - 1));  // always zero
    for (int64_t w = 0; w < p.w.out; ++w) {
      const Range window = p.w.windows[w];
      for (int64_t j = 0; j < window.size(); ++j) {
        voxels[j * columns + w] = static_cast<int32_t>(window.begin + j);
      }
    }
  }

  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t oh = row % p.h.out, od = row / p.h.out % p.d.out, plane = row / (p.h.out * p.d.out);
    const Range d = taps_inside(p.d, od), h = taps_inside(p.h, oh);
    const T* x =
        static_cast<const T*>(p.source) +
        ((plane * p.d.in + position(p.d, od, d.begin)) * p.h.in + position(p.h, oh, h.begin)) * p.w.in;
    float* to = sums + p.w.padding;
    for (int64_t w = 0; w < p.w.in;) {
      const int64_t left = p.w.in - w;
      if (left >= 4 * Vec::width) {
        sum_columns<4>(p, x + w, d.size(), h.size(), Vec::width, to + w);
        w += 4 * Vec::width;
      } else if (left > Vec::width) {
        sum_columns<2>(p, x + w, d.size(), h.size(), std::min(Vec::width, left - Vec::width), to + w);
        w += 2 * Vec::width;
      } else {
        sum_columns<1>(p, x + w, d.size(), h.size(), left, to + w);
        w += Vec::width;
      }
    }
    const auto divisor = static_cast<float>(row_divisor(p, od, oh));
    const Vec divisor_lanes = Vec::broadcast(divisor);
    R* y = static_cast<R*>(p.result) + row * p.w.out;
    if (runs) {
      sum_row_in_runs(p, sums, divisors, divisor, y);
    } else if (gathers) {
      gather_row(p, sums, voxels, divisors, divisor_lanes, y);
    } else if (p.w.stride == 1) {
      sum_row<1>(p, sums, divisors, divisor_lanes, y);
    } else if (p.w.stride == 2) {
      sum_row<2>(p, sums, divisors, divisor_lanes, y);
    } else {
      sum_row<0>(p, sums, divisors, divisor_lanes, y);
    }
  }
}

template <class T>
void forward_plain(const Params& p, int64_t row_begin, int64_t row_end, float* scratch) {
  if (p.wide_result) {
    forward_plain_rows<T, float>(p, row_begin, row_end, scratch);
  } else {
    forward_plain_rows<T, T>(p, row_begin, row_end, scratch);
  }
}

// One output voxel, `blocks` vectors of channels, the last of them with `last` channels. x: the channels'
// first element at the window's first tap.
template <int blocks, class T, class R>
inline void mean_voxel(const Params& p, const T* x, int64_t taps_d, int64_t taps_h, int64_t taps_w,
                       Vec divisor, int64_t last, R* y) {
  Vec sum[blocks];
  for (int b = 0; b < blocks; ++b) sum[b] = Vec::zero();
  for (int64_t i = 0; i < taps_d; ++i) {
    for (int64_t j = 0; j < taps_h; ++j) {
      const T* voxel = x + (i * p.h.in + j) * p.w.in * p.channels;
      for (int64_t k = 0; k < taps_w; ++k, voxel += p.channels) {
        for (int b = 0; b < blocks; ++b) {
          sum[b] = sum[b] + load_up_to(voxel + b * Vec::width, b + 1 < blocks ? Vec::width : last);
        }
      }
    }
  }
  for (int b = 0; b < blocks; ++b) {
    store_up_to(sum[b] / divisor, y + b * Vec::width, b + 1 < blocks ? Vec::width : last);
  }
}

template <class T, class R>
void forward_channels_last_rows(const Params& p, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t oh = row % p.h.out, od = row / p.h.out % p.d.out, image = row / (p.h.out * p.d.out);
    const Range d = taps_inside(p.d, od), h = taps_inside(p.h, oh);
    const int64_t first =
        ((image * p.d.in + position(p.d, od, d.begin)) * p.h.in + position(p.h, oh, h.begin)) * p.w.in;
    const auto divisor = static_cast<float>(row_divisor(p, od, oh));
    for (int64_t ow = 0; ow < p.w.out; ++ow) {
      const Range w = taps_inside(p.w, ow);
      const T* x = static_cast<const T*>(p.source) + (first + position(p.w, ow, w.begin)) * p.channels;
      R* y = static_cast<R*>(p.result) + (row * p.w.out + ow) * p.channels;
      const Vec whole = Vec::broadcast(divisor * static_cast<float>(column_divisor(p, ow)));
      const int64_t taps_d = d.end - d.begin, taps_h = h.end - h.begin, taps_w = w.end - w.begin;
      for (int64_t c = 0; c < p.channels;) {
        const int64_t left = p.channels - c;
        const int64_t blocks = std::min<int64_t>((left + Vec::width - 1) / Vec::width, most_blocks);
        const int64_t last = std::min(Vec::width, left - (blocks - 1) * Vec::width);
        if (blocks == 4) {
          mean_voxel<4>(p, x + c, taps_d, taps_h, taps_w, whole, last, y + c);
        } else if (blocks == 3) {
          mean_voxel<3>(p, x + c, taps_d, taps_h, taps_w, whole, last, y + c);
        } else if (blocks == 2) {
          mean_voxel<2>(p, x + c, taps_d, taps_h, taps_w, whole, last, y + c);
        } else {
          mean_voxel<1>(p, x + c, taps_d, taps_h, taps_w, whole, last, y + c);
        }
        c += blocks * Vec::width;
      }
    }
  }
}

template <class T>
void forward_channels_last(const Params& p, int64_t row_begin, int64_t row_end) {
  if (p.wide_result) {
    forward_channels_last_rows<T, float>(p, row_begin, row_end);
  } else {
    forward_channels_last_rows<T, T>(p, row_begin, row_end);
  }
}

// Whether row h of a slice of dx is the same as the one before it, because the same windows hold both.
inline bool same_windows(const Params& p, int64_t h) {
  if (h == 0) return false;
  const Range here = outputs_touching(p.h, h, h + 1), before = outputs_touching(p.h, h - 1, h);
  return here.begin == before.begin && here.end == before.end;
}

// One over an axis' part of the divisor of each output; that of divisor_override counts on the d axis.
inline void fill_scales(const Params& p, const pooling::Axis& a, float* scales) {
  const bool is_d = &a == &p.d;
  for (int64_t o = 0; o < a.out; ++o) {
    const int64_t part = p.divisor_override == 0 ? window_size(p, a, o) : is_d ? p.divisor_override : 1;
    scales[o] = 1.0f / static_cast<float>(part);
  }
}

// The scratch of backward, in this order.
struct BackwardScratch {
  float *sums, *d_scales, *h_scales, *w_scales, *row;
  int32_t* table;

  inline BackwardScratch(const Params& p, bool plain, float* scratch) {
    const int64_t left = plain ? pooling::spread_left(p.w) : 0, sums_length = backward_sums(p, plain);
    std::fill_n(scratch, sums_length, 0.0f);
    sums = scratch + left;
    d_scales = scratch + sums_length;
    h_scales = d_scales + round_up(p.d.out);
    w_scales = h_scales + round_up(p.h.out);
    row = w_scales + round_up(p.w.out);
    table = reinterpret_cast<int32_t*>(row + backward_row(p, plain));
    fill_scales(p, p.d, d_scales);
    fill_scales(p, p.h, h_scales);
    std::fill_n(w_scales, round_up(p.w.out), 0.0f);
    fill_scales(p, p.w, w_scales);
  }
};

// sums[0, n) = what was there, if not `first`, and each of `count` rows by its scale.
template <class T>
inline void add_rows(const T* const* rows, const Vec* scales, int64_t count, int64_t n, bool first,
                     float* sums) {
  for (int64_t k = 0; k < n; k += Vec::width) {
    const int64_t left = std::min(Vec::width, n - k);
    Vec sum = first ? Vec::zero() : Vec::load(sums + k);
    for (int64_t r = 0; r < count; ++r) sum = Vec::fma(load_up_to(rows[r] + k, left), scales[r], sum);
    sum.store(sums + k);  // lanes past the row are zero
  }
}

// The sum over the windows (d, h) of row (d, h) of dx of n elements of dy, over their divisors but for the
// part of the w axis.
template <class T>
inline void sum_windows(const Params& p, const BackwardScratch& scratch, const T* dy, Range d, Range h,
                        int64_t n, float* sums) {
  constexpr int64_t most = 9;  // rows at once
  const T* rows[most];
  Vec scales[most];
  int64_t count = 0;
  bool first = true;
  for (int64_t i = d.begin; i < d.end; ++i) {
    for (int64_t j = h.begin; j < h.end; ++j) {
      rows[count] = dy + (i * p.h.out + j) * n;
      scales[count] = Vec::broadcast(scratch.d_scales[i] * scratch.h_scales[j]);
      if (++count < most) continue;
      add_rows(rows, scales, count, n, first, sums);
      count = 0;
      first = false;
    }
  }
  if (count > 0 || first) add_rows(rows, scales, count, n, first, sums);
}

template <class T, class Writer>
void backward_plain_rows(const Params& p, int64_t row_begin, int64_t row_end, float* scratch, Writer& out) {
  const BackwardScratch in(p, true, scratch);
  const int64_t pitch = pooling::spread_row_length(p.w), table_rows = pooling::most_outputs(p.w);
  fill_spread_table(p.w, 0, round_up(p.w.out), in.table);
  T* const dx = reinterpret_cast<T*>(in.row);
  pooling::RowAt at(row_begin, p.d.in, p.h.in);
  for (int64_t row = row_begin; row < row_end;) {
    const int64_t rows = std::min(pooling::rows_at_once(p.w), row_end - row);
    int64_t same[8];  // the row with the same sums
    for (int64_t r = 0; r < rows; ++r, at.next()) {
      same[r] = r;
      if (r > 0 && same_windows(p, at.h)) {
        same[r] = same[r - 1];
        continue;
      }
      float* sum = in.sums + r * pitch;
      sum_windows(p, in, static_cast<const T*>(p.source) + at.plane * p.d.out * p.h.out * p.w.out,
                  outputs_touching(p.d, at.d, at.d + 1), outputs_touching(p.h, at.h, at.h + 1), p.w.out, sum);
      for (int64_t w = 0; w < p.w.out; w += Vec::width) {
        (Vec::load(sum + w) * Vec::load(in.w_scales + w)).store(sum + w);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      spread_row(p.w, in.sums + same[r] * pitch, 0, in.table, table_rows, dx + r * p.w.in);
    }
    out.copy(reinterpret_cast<const char*>(dx), rows * p.w.in * static_cast<int64_t>(sizeof(T)));
    row += rows;
  }
  out.finish();
}

template <class T, class Writer>
void backward_channels_last_rows(const Params& p, int64_t row_begin, int64_t row_end, float* scratch,
                                 Writer& out) {
  const BackwardScratch in(p, false, scratch);
  T* const row_dx = reinterpret_cast<T*>(in.row);
  const int64_t channels = p.channels;
  for (int64_t w = 0; w < p.w.in; ++w) {
    const Range of = outputs_touching(p.w, w, w + 1);
    in.table[2 * w] = static_cast<int32_t>(of.begin);
    in.table[2 * w + 1] = static_cast<int32_t>(of.end);
  }
  pooling::RowAt at(row_begin, p.d.in, p.h.in);
  for (int64_t row = row_begin; row < row_end; ++row, at.next()) {
    const int64_t image = at.plane, d = at.d, h = at.h;
    if (row == row_begin || !same_windows(p, h)) {
      sum_windows(p, in, static_cast<const T*>(p.source) + image * p.d.out * p.h.out * p.w.out * channels,
                  outputs_touching(p.d, d, d + 1), outputs_touching(p.h, h, h + 1), p.w.out * channels,
                  in.sums);
      for (int64_t w = 0; w < p.w.in; ++w) {
        const int64_t begin = in.table[2 * w], end = in.table[2 * w + 1];
        T* dx = row_dx + w * channels;  // vectors reach into the next voxel, which is written after it
        for (int64_t c = 0; c < channels; c += Vec::width) {
          Vec sum = Vec::zero();
          for (int64_t o = begin; o < end; ++o) {
            sum = Vec::fma(Vec::load(in.sums + o * channels + c), Vec::broadcast(in.w_scales[o]), sum);
          }
          sum.store(dx + c);
        }
      }
    }
    out.copy(reinterpret_cast<const char*>(row_dx), p.w.in * channels * static_cast<int64_t>(sizeof(T)));
  }
  out.finish();
}

template <class T>
void backward_plain(const Params& p, int64_t row_begin, int64_t row_end, float* scratch) {
  char* const dx = reinterpret_cast<char*>(static_cast<T*>(p.result) + row_begin * p.w.in);
  if (p.stream) {
    Streamed out(dx);
    backward_plain_rows<T>(p, row_begin, row_end, scratch, out);
  } else {
    Direct out{dx};
    backward_plain_rows<T>(p, row_begin, row_end, scratch, out);
  }
}

template <class T>
void backward_channels_last(const Params& p, int64_t row_begin, int64_t row_end, float* scratch) {
  char* const dx = reinterpret_cast<char*>(static_cast<T*>(p.result) + row_begin * p.w.in * p.channels);
  if (p.stream) {
    Streamed out(dx);
    backward_channels_last_rows<T>(p, row_begin, row_end, scratch, out);
  } else {
    Direct out{dx};
    backward_channels_last_rows<T>(p, row_begin, row_end, scratch, out);
  }
}

void forward_plain_f32(const Params& p, int64_t begin, int64_t end, float* scratch) {
  forward_plain<float>(p, begin, end, scratch);
}
void forward_plain_bf16(const Params& p, int64_t begin, int64_t end, float* scratch) {
  forward_plain<bfloat16>(p, begin, end, scratch);
}
void forward_channels_last_f32(const Params& p, int64_t begin, int64_t end, float*) {
  forward_channels_last<float>(p, begin, end);
}
void forward_channels_last_bf16(const Params& p, int64_t begin, int64_t end, float*) {
  forward_channels_last<bfloat16>(p, begin, end);
}
void backward_plain_f32(const Params& p, int64_t begin, int64_t end, float* scratch) {
  backward_plain<float>(p, begin, end, scratch);
}
void backward_plain_bf16(const Params& p, int64_t begin, int64_t end, float* scratch) {
  backward_plain<bfloat16>(p, begin, end, scratch);
}
void backward_channels_last_f32(const Params& p, int64_t begin, int64_t end, float* scratch) {
  backward_channels_last<float>(p, begin, end, scratch);
}
void backward_channels_last_bf16(const Params& p, int64_t begin, int64_t end, float* scratch) {
  backward_channels_last<bfloat16>(p, begin, end, scratch);
}

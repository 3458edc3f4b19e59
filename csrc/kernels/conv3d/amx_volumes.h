// How the AMX convolutions read and write volumes. Included inside the namespace of the level after
// epilogue_body.h and amx_tiles.h.

// Sixteen vectors along w, of `channels` channels that lie `step` apart, to sixteen of channels.
template <class S>
inline void load_transposed(const S* from, int64_t step, int64_t channels, int64_t count, __m512i (&x)[16]) {
#pragma GCC unroll 16
  for (int c = 0; c < 16; ++c) {
    x[c] = c < channels ? _mm512_castps_si512(Vec::load(from + c * step, count).v) : _mm512_setzero_si512();
  }
  transpose(x);
}

// The voxels [begin, end) of an axis that the outputs [first, first + count) read.
inline std::pair<int64_t, int64_t> input_range(const Axis& axis, int64_t first, int64_t count) {
  const auto inside = [&](int64_t at) { return std::clamp<int64_t>(at, 0, axis.input); };
  return {inside(first * axis.stride + axis.taps.front().offset),
          inside((first + count - 1) * axis.stride + axis.taps.back().offset + 1)};
}

// Input voxels of an image and a group, to be fetched ahead.
template <class S>
Ahead input_ahead(const Convolution& call, int64_t n, int64_t group, std::pair<int64_t, int64_t> d,
                  std::pair<int64_t, int64_t> h, std::pair<int64_t, int64_t> w) {
  Ahead ahead;
  const auto& [depth, height, width] = call.axes;
  if (call.loads_inputs || d.first >= d.second || h.first >= h.second || w.first >= w.second) return ahead;
  const int64_t all_channels = call.groups * call.channels, size = static_cast<int64_t>(sizeof(S));
  const int64_t voxel = call.plain_x ? size : all_channels * size;
  const int64_t row = width.input * voxel, plane = height.input * row, volume = depth.input * plane;
  const char* first = static_cast<const char*>(call.x) + d.first * plane + h.first * row;
  ahead.plane_step = plane;
  ahead.planes = d.second - d.first;
  if (call.plain_x) {
    ahead.plane = first + (n * all_channels + group * call.channels) * volume;
    ahead.row = (h.second - h.first) * row;
    ahead.row_step = volume;
    ahead.rows = call.channels;
  } else {
    ahead.plane = first + n * volume + w.first * voxel;
    ahead.row = (w.second - w.first) * voxel;
    ahead.row_step = row;
    ahead.rows = h.second - h.first;
  }
  return ahead;
}

// Sums to a plain volume: `outputs` voxels of a row, sixteen filters at a time.
template <class S>
void store_plain(const float* sums, int64_t outputs, const float* bias, int64_t filters, S* y, int64_t step) {
  for (int64_t k = 0; k < filters; k += 16) {
    const int64_t lanes = std::min<int64_t>(16, filters - k);
    const Vec add = bias == nullptr ? Vec::zero() : Vec::load(bias + k, lanes);
    for (int64_t first = 0; first < outputs; first += 16) {
      const int64_t n = std::min<int64_t>(16, outputs - first);
      __m512i x[16];
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        x[i] = i < n ? _mm512_castps_si512((Vec::load(sums + (first + i) * 32 + k) + add).v)
                     : _mm512_setzero_si512();
      }
      transpose(x);
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) {
        if (i < lanes) Vec{_mm512_castsi512_ps(x[i])}.store(y + (k + i) * step + first, n);
      }
    }
  }
}

// Outputs that lie next to each other along w, of a block of filters.
struct Outputs {
  int64_t n, d, h, w;  // image, and the first output as the kernel numbers them
  int64_t count;
  int64_t filter, filters;  // numbered over all groups; at most 32
  int64_t slot;             // of the statistics
};

// The voxel of the first of them within its image.
inline int64_t first_voxel(const Convolution& call, const Outputs& outputs) {
  const auto& [depth, height, width] = call.axes;
  return ((depth.write_first + outputs.d * depth.write_step) * height.output + height.write_first +
          outputs.h * height.write_step) *
             width.output +
         width.write_first + outputs.w * width.write_step;
}

// What will be added to them.
template <class S>
void fetch_residual(const Convolution& call, const Outputs& outputs) {
  const auto& [depth, height, width] = call.axes;
  const int64_t all_filters = call.groups * call.filters, step = width.write_step * all_filters;
  const int64_t volume = depth.output * height.output * width.output;
  const S* from = static_cast<const S*>(call.epilogue.residual) +
                  (outputs.n * volume + first_voxel(call, outputs)) * all_filters + outputs.filter;
  for (int64_t i = 0; i < outputs.count; ++i, from += step) {
    __builtin_prefetch(from, 0, 2);
    if (sizeof(S) == 4 && outputs.filters > 16) __builtin_prefetch(from + 16, 0, 2);
  }
}

// Their sums [count][32] to y, after bias and epilogue.
template <class S>
void store_outputs(const Convolution& call, bool stream, const float* sums, const Outputs& outputs) {
  const auto& [depth, height, width] = call.axes;
  const int64_t filter = outputs.filter, filters = outputs.filters, count = outputs.count;
  const int64_t all_filters = call.groups * call.filters, step = width.write_step * all_filters;
  const int64_t volume = depth.output * height.output * width.output, voxel = first_voxel(call, outputs);
  const auto* bias = static_cast<const float*>(call.bias);
  const int64_t offset = (outputs.n * volume + voxel) * all_filters + filter;
  if (call.plain_y) {
    store_plain<S>(sums, count, bias == nullptr ? nullptr : bias + filter, filters,
                   static_cast<S*>(call.y) + (outputs.n * all_filters + filter) * volume + voxel, volume);
    return;
  }
  if (!call.epilogue.empty()) {
    if (count > 0) {
      // Vector after vector: those of bfloat16 are half a line.
      const bool past_caches = stream && filters == 32 && sizeof(S) == 4 && !call.epilogue.gathers();
      finish<Vec, S>(
          call.epilogue, call.bias,
          {sums, 32, count, filter, filters, call.y, offset, step, outputs.slot, all_filters, past_caches});
    }
    return;
  }
  S* y = static_cast<S*>(call.y) + offset;
  const int64_t low = std::min<int64_t>(filters, 16), high = filters - low;
  const Vec bias0 = bias == nullptr ? Vec::zero() : Vec::load(bias + filter, low);
  const Vec bias1 = bias == nullptr || high == 0 ? Vec::zero() : Vec::load(bias + filter + 16, high);
  if (filters == 32 && stream) {
    for (int64_t i = 0; i < count; ++i, y += step) {
      (Vec::load(sums + i * 32) + bias0).stream(y);
      (Vec::load(sums + i * 32 + 16) + bias1).stream(y + 16);
    }
  } else if (filters == 32) {
    for (int64_t i = 0; i < count; ++i, y += step) {
      (Vec::load(sums + i * 32) + bias0).store(y);
      (Vec::load(sums + i * 32 + 16) + bias1).store(y + 16);
    }
  } else {
    for (int64_t i = 0; i < count; ++i, y += step) {
      (Vec::load(sums + i * 32) + bias0).store(y, low);
      if (high > 0) (Vec::load(sums + i * 32 + 16) + bias1).store(y + 16, high);
    }
  }
}

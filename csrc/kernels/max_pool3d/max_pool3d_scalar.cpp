// The definition, tap by tap: what runs on every machine, in float64, and where fits_vector() says no.
#include <algorithm>
#include <limits>

#include "isa/bfloat16.h"
#include "kernels/max_pool3d/max_pool3d.h"

#include "isa/scalar_begin.h"
namespace volnet::max_pool3d::VOLNET_ISA {

using pooling::Range;
using pooling::taps_inside;

// The windows of one row. x: the plane's first element; step: from one voxel to the next.
template <class Index, class T>
void pool_row(const Params& p, const T* x, int64_t step, int64_t od, int64_t oh, T* y, Index* indices) {
  const Range d = taps_inside(p.d, od), h = taps_inside(p.h, oh);
  for (int64_t ow = 0; ow < p.w.out; ++ow) {
    const Range w = taps_inside(p.w, ow);
    auto best = -std::numeric_limits<compute_t<T>>::infinity();
    int64_t index = -1;
    for (int64_t i = d.begin; i < d.end; ++i) {
      for (int64_t j = h.begin; j < h.end; ++j) {
        for (int64_t k = w.begin; k < w.end; ++k) {
          const int64_t place =
              (position(p.d, od, i) * p.h.in + position(p.h, oh, j)) * p.w.in + position(p.w, ow, k);
          const auto value = to_float(x[place * step]);
          if (index < 0 || value > best || value != value) {
            best = value;
            index = place;
          }
        }
      }
    }
    y[ow * step] = from_float<T>(best);
    if (indices != nullptr) indices[ow * step] = static_cast<Index>(index);
  }
}

// At an offset in p.indices, which may be null.
template <class Index>
Index* indices_at(const Params& p, int64_t offset) {
  return p.indices == nullptr ? nullptr : static_cast<Index*>(p.indices) + offset;
}

template <class Index, class T>
void forward_plain_rows(const Params& p, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t oh = row % p.h.out, od = row / p.h.out % p.d.out, plane = row / (p.h.out * p.d.out);
    const int64_t out = row * p.w.out;
    pool_row(p, static_cast<const T*>(p.x) + plane * p.d.in * p.h.in * p.w.in, 1, od, oh,
             static_cast<T*>(p.y) + out, indices_at<Index>(p, out));
  }
}

template <class Index, class T>
void forward_channels_last_rows(const Params& p, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t oh = row % p.h.out, od = row / p.h.out % p.d.out, image = row / (p.h.out * p.d.out);
    for (int64_t c = 0; c < p.channels; ++c) {
      const int64_t out = row * p.w.out * p.channels + c;
      pool_row(p, static_cast<const T*>(p.x) + image * p.d.in * p.h.in * p.w.in * p.channels + c, p.channels,
               od, oh, static_cast<T*>(p.y) + out, indices_at<Index>(p, out));
    }
  }
}

template <class T>
void forward_plain(const Params& p, int64_t row_begin, int64_t row_end) {
  if (p.narrow) {
    forward_plain_rows<int32_t, T>(p, row_begin, row_end);
  } else {
    forward_plain_rows<int64_t, T>(p, row_begin, row_end);
  }
}

template <class T>
void forward_channels_last(const Params& p, int64_t row_begin, int64_t row_end) {
  if (p.narrow) {
    forward_channels_last_rows<int32_t, T>(p, row_begin, row_end);
  } else {
    forward_channels_last_rows<int64_t, T>(p, row_begin, row_end);
  }
}

template <class Index, class T>
void join_rows(const Params& p, const pooling::Parts& parts, const void* maxima, const Index* indices,
               int64_t row_elements, int64_t row_begin, int64_t row_end) {
  const int64_t rows_in_plane = p.d.out * p.h.out;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t oh = row % p.h.out, od = row / p.h.out % p.d.out, plane = row / rows_in_plane;
    const auto [first, step_d] = rows_of_parts(p.h, parts, od, oh);
    const int64_t from = (plane * rows_in_plane * parts.count() + first) * row_elements;
    T* y = static_cast<T*>(p.y) + row * row_elements;
    for (int64_t k = 0; k < row_elements; ++k) {
      auto best = -std::numeric_limits<compute_t<T>>::infinity();
      int64_t index = -1;
      for (int64_t i = 0; i < parts.d; ++i) {
        for (int64_t j = 0; j < parts.h; ++j) {
          const int64_t part = from + (i * step_d + j) * row_elements + k;
          const auto value = to_float(static_cast<const T*>(maxima)[part]);
          if (indices != nullptr && indices[part] < 0) continue;
          if (index < 0 || value > best || value != value) {
            if (indices != nullptr) index = indices[part];
            best = value > best || value != value ? value : best;
          }
        }
      }
      y[k] = from_float<T>(best);
      if (indices != nullptr) {
        static_cast<Index*>(p.indices)[row * row_elements + k] = static_cast<Index>(index);
      }
    }
  }
}

template <class T>
void join(const Params& p, const pooling::Parts& parts, const void* maxima, const void* indices,
          int64_t row_elements, int64_t begin, int64_t end) {
  if (p.narrow) {
    join_rows<int32_t, T>(p, parts, maxima, static_cast<const int32_t*>(indices), row_elements, begin, end);
  } else {
    join_rows<int64_t, T>(p, parts, maxima, static_cast<const int64_t*>(indices), row_elements, begin, end);
  }
}

#define VOLNET_DEFINE(DTYPE, T)                                                                            \
  void join_##DTYPE(const Params& p, const pooling::Parts& parts, const void* maxima, const void* indices, \
                    int64_t row_elements, int64_t begin, int64_t end) {                                    \
    join<T>(p, parts, maxima, indices, row_elements, begin, end);                                          \
  }
VOLNET_DEFINE(f32, float)
VOLNET_DEFINE(bf16, bfloat16)
VOLNET_DEFINE(f64, double)
#undef VOLNET_DEFINE

void forward_plain_f32(const Params& p, int64_t begin, int64_t end, void*) {
  forward_plain<float>(p, begin, end);
}
void forward_plain_bf16(const Params& p, int64_t begin, int64_t end, void*) {
  forward_plain<bfloat16>(p, begin, end);
}
void forward_plain_f64(const Params& p, int64_t begin, int64_t end, void*) {
  forward_plain<double>(p, begin, end);
}
void forward_channels_last_f32(const Params& p, int64_t begin, int64_t end, void*) {
  forward_channels_last<float>(p, begin, end);
}
void forward_channels_last_bf16(const Params& p, int64_t begin, int64_t end, void*) {
  forward_channels_last<bfloat16>(p, begin, end);
}
void forward_channels_last_f64(const Params& p, int64_t begin, int64_t end, void*) {
  forward_channels_last<double>(p, begin, end);
}

template <class Index, class T>
void gather_rows(const BackwardParams& p, int64_t row_begin, int64_t row_end) {
  using pooling::outputs_touching;
  const auto* dy = static_cast<const T*>(p.dy);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t h = row % p.h.in, d = row / p.h.in % p.d.in, image = row / (p.h.in * p.d.in);
    const Range od = outputs_touching(p.d, d, d + 1), oh = outputs_touching(p.h, h, h + 1);
    for (int64_t w = 0; w < p.w.in; ++w) {
      const Range ow = outputs_touching(p.w, w, w + 1);
      const int64_t place = (d * p.h.in + h) * p.w.in + w;
      for (int64_t c = 0; c < p.channels; ++c) {
        compute_t<T> sum = 0;
        for (int64_t i = od.begin; i < od.end; ++i) {
          for (int64_t j = oh.begin; j < oh.end; ++j) {
            for (int64_t k = ow.begin; k < ow.end; ++k) {
              const int64_t o = (((image * p.d.out + i) * p.h.out + j) * p.w.out + k) * p.channels + c;
              if (static_cast<const Index*>(p.indices)[o] == place) sum += to_float(dy[o]);
            }
          }
        }
        static_cast<T*>(p.dx)[(row * p.w.in + w) * p.channels + c] = from_float<T>(sum);
      }
    }
  }
}

template <class T>
void backward_gather(const BackwardParams& p, int64_t begin, int64_t end) {
  if (p.narrow) {
    gather_rows<int32_t, T>(p, begin, end);
  } else {
    gather_rows<int64_t, T>(p, begin, end);
  }
}

void backward_gather_f32(const BackwardParams& p, int64_t begin, int64_t end, float*) {
  backward_gather<float>(p, begin, end);
}
void backward_gather_bf16(const BackwardParams& p, int64_t begin, int64_t end, float*) {
  backward_gather<bfloat16>(p, begin, end);
}
void backward_gather_f64(const BackwardParams& p, int64_t begin, int64_t end, float*) {
  backward_gather<double>(p, begin, end);
}

#include "kernels/max_pool3d/scatter_body.h"

void backward_sparse_f64(const BackwardParams& p, int64_t begin, int64_t end) {
  backward_sparse<double>(p, begin, end);
}
void backward_scatter_f64(const BackwardParams& p, const Slab& slab, float* scratch) {
  backward_scatter<double>(p, slab, scratch);
}
}  // namespace volnet::max_pool3d::VOLNET_ISA
#include "isa/scalar_end.h"

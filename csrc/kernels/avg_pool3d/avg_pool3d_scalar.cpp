// The definition, tap by tap: what runs on every machine, in float64, and where fits_vector() says no.
#include <algorithm>

#include "isa/bfloat16.h"
#include "kernels/avg_pool3d/avg_pool3d.h"

#include "isa/scalar_begin.h"
namespace volnet::avg_pool3d::VOLNET_ISA {

using pooling::outputs_touching;
using pooling::Range;
using pooling::taps_inside;

// One row of y. x: the plane's first element; step: from one voxel to the next.
template <class T, class R>
void forward_row_of(const Params& p, const T* x, int64_t step, int64_t od, int64_t oh, R* y) {
  const Range d = taps_inside(p.d, od), h = taps_inside(p.h, oh);
  for (int64_t ow = 0; ow < p.w.out; ++ow) {
    const Range w = taps_inside(p.w, ow);
    compute_t<T> sum = 0;
    for (int64_t i = d.begin; i < d.end; ++i) {
      for (int64_t j = h.begin; j < h.end; ++j) {
        const int64_t row = (position(p.d, od, i) * p.h.in + position(p.h, oh, j)) * p.w.in;
        for (int64_t k = w.begin; k < w.end; ++k) sum += to_float(x[(row + position(p.w, ow, k)) * step]);
      }
    }
    const int64_t divisor = row_divisor(p, od, oh) * column_divisor(p, ow);
    y[ow * step] = from_float<R>(sum / static_cast<compute_t<T>>(divisor));
  }
}

// One row of dx. dy: the plane's first element.
template <class T>
void backward_row_of(const Params& p, const T* dy, int64_t step, int64_t d, int64_t h, T* dx) {
  const Range od = outputs_touching(p.d, d, d + 1), oh = outputs_touching(p.h, h, h + 1);
  for (int64_t w = 0; w < p.w.in; ++w) {
    const Range ow = outputs_touching(p.w, w, w + 1);
    compute_t<T> sum = 0;
    for (int64_t i = od.begin; i < od.end; ++i) {
      for (int64_t j = oh.begin; j < oh.end; ++j) {
        for (int64_t k = ow.begin; k < ow.end; ++k) {
          const int64_t divisor = row_divisor(p, i, j) * column_divisor(p, k);
          sum += to_float(dy[((i * p.h.out + j) * p.w.out + k) * step]) / static_cast<compute_t<T>>(divisor);
        }
      }
    }
    dx[w * step] = from_float<T>(sum);
  }
}

template <class T, class R>
void forward_plain_rows(const Params& p, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t oh = row % p.h.out, od = row / p.h.out % p.d.out, plane = row / (p.h.out * p.d.out);
    forward_row_of(p, static_cast<const T*>(p.source) + plane * p.d.in * p.h.in * p.w.in, 1, od, oh,
                   static_cast<R*>(p.result) + row * p.w.out);
  }
}

template <class T, class R>
void forward_channels_last_rows(const Params& p, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t oh = row % p.h.out, od = row / p.h.out % p.d.out, image = row / (p.h.out * p.d.out);
    for (int64_t c = 0; c < p.channels; ++c) {
      forward_row_of(p, static_cast<const T*>(p.source) + image * p.d.in * p.h.in * p.w.in * p.channels + c,
                     p.channels, od, oh, static_cast<R*>(p.result) + row * p.w.out * p.channels + c);
    }
  }
}

template <class T>
void forward_plain(const Params& p, int64_t row_begin, int64_t row_end) {
  if (p.wide_result) {
    forward_plain_rows<T, compute_t<T>>(p, row_begin, row_end);
  } else {
    forward_plain_rows<T, T>(p, row_begin, row_end);
  }
}

template <class T>
void forward_channels_last(const Params& p, int64_t row_begin, int64_t row_end) {
  if (p.wide_result) {
    forward_channels_last_rows<T, compute_t<T>>(p, row_begin, row_end);
  } else {
    forward_channels_last_rows<T, T>(p, row_begin, row_end);
  }
}

template <class T>
void backward_plain(const Params& p, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t h = row % p.h.in, d = row / p.h.in % p.d.in, plane = row / (p.h.in * p.d.in);
    backward_row_of(p, static_cast<const T*>(p.source) + plane * p.d.out * p.h.out * p.w.out, 1, d, h,
                    static_cast<T*>(p.result) + row * p.w.in);
  }
}

template <class T>
void backward_channels_last(const Params& p, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t h = row % p.h.in, d = row / p.h.in % p.d.in, image = row / (p.h.in * p.d.in);
    for (int64_t c = 0; c < p.channels; ++c) {
      backward_row_of(p,
                      static_cast<const T*>(p.source) + image * p.d.out * p.h.out * p.w.out * p.channels + c,
                      p.channels, d, h, static_cast<T*>(p.result) + row * p.w.in * p.channels + c);
    }
  }
}

template <class T>
void join(const Params& p, const pooling::Parts& parts, const void* sums, int64_t row_elements,
          int64_t row_begin, int64_t row_end) {
  using A = compute_t<T>;
  constexpr int64_t block = 64;
  const int64_t channels = row_elements / p.w.out, rows_in_plane = p.d.out * p.h.out;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t oh = row % p.h.out, od = row / p.h.out % p.d.out, plane = row / rows_in_plane;
    const auto [first, step_d] = rows_of_parts(p.h, parts, od, oh);
    const A* from =
        static_cast<const A*>(sums) + (plane * rows_in_plane * parts.count() + first) * row_elements;
    T* y = static_cast<T*>(p.result) + row * row_elements;
    for (int64_t begin = 0; begin < row_elements; begin += block) {
      const int64_t n = std::min(block, row_elements - begin);
      A sum[block] = {};
      for (int64_t i = 0; i < parts.d; ++i) {
        for (int64_t j = 0; j < parts.h; ++j) {
          const A* part = from + (i * step_d + j) * row_elements + begin;
          for (int64_t k = 0; k < n; ++k) sum[k] += part[k];
        }
      }
      for (int64_t k = 0; k < n; ++k) {
        const int64_t divisor = row_divisor(p, od, oh) * column_divisor(p, (begin + k) / channels);
        y[begin + k] = from_float<T>(sum[k] / static_cast<A>(divisor));
      }
    }
  }
}

#define VOLNET_DEFINE(DTYPE, T)                                                                           \
  void forward_plain_##DTYPE(const Params& p, int64_t begin, int64_t end, float*) {                       \
    forward_plain<T>(p, begin, end);                                                                      \
  }                                                                                                       \
  void forward_channels_last_##DTYPE(const Params& p, int64_t begin, int64_t end, float*) {               \
    forward_channels_last<T>(p, begin, end);                                                              \
  }                                                                                                       \
  void backward_plain_##DTYPE(const Params& p, int64_t begin, int64_t end, float*) {                      \
    backward_plain<T>(p, begin, end);                                                                     \
  }                                                                                                       \
  void backward_channels_last_##DTYPE(const Params& p, int64_t begin, int64_t end, float*) {              \
    backward_channels_last<T>(p, begin, end);                                                             \
  }                                                                                                       \
  void join_##DTYPE(const Params& p, const pooling::Parts& parts, const void* sums, int64_t row_elements, \
                    int64_t begin, int64_t end) {                                                         \
    join<T>(p, parts, sums, row_elements, begin, end);                                                    \
  }
VOLNET_DEFINE(f32, float)
VOLNET_DEFINE(bf16, bfloat16)
VOLNET_DEFINE(f64, double)
#undef VOLNET_DEFINE

}  // namespace volnet::avg_pool3d::VOLNET_ISA
#include "isa/scalar_end.h"

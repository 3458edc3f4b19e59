// Included inside volnet::pad::VOLNET_ISA, after Vec. pad.h is the specification.
#include "kernels/bytes/writers.h"

// Outputs [from, to) of a row, a voxel at a time.
template <class Writer>
inline void write_border(const Forward& p, const char* row, int64_t from, int64_t to, VecBytes value,
                         Writer& out) {
  for (int64_t o = from; o < to; ++o) {
    if (p.w.source[o] < 0) {
      out.fill(value, p.voxel);
    } else {
      out.copy(row + p.w.source[o] * p.voxel, p.voxel);
    }
  }
}

template <class Writer>
inline void write_rows(const Forward& p, int64_t begin, int64_t end, Writer& out) {
  const VecBytes value = VecBytes::broadcast(p.value);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t plane = row / p.h.out / p.d.out;
    const int64_t d = p.d.source[row / p.h.out % p.d.out], h = p.h.source[row % p.h.out];
    if (d < 0 || h < 0) {
      out.fill(value, p.w.out * p.voxel);
      continue;
    }
    const char* const x = p.x + ((plane * p.d.in + d) * p.h.in + h) * p.w.in * p.voxel;
    write_border(p, x, 0, p.w.begin, value, out);
    if (p.w.begin < p.w.end) {
      out.copy(x + p.w.source[p.w.begin] * p.voxel, (p.w.end - p.w.begin) * p.voxel);
    }
    write_border(p, x, p.w.end, p.w.out, value, out);
  }
  out.finish();
}

void forward(const Forward& p, int64_t begin, int64_t end) {
  char* const y = p.y + begin * p.w.out * p.voxel;
  if (p.stream) {
    Streamed out(y);
    write_rows(p, begin, end, out);
  } else {
    Direct out{y};
    write_rows(p, begin, end, out);
  }
}

// The outputs that show an input, or the first of a run of inputs, on one axis.
struct List {
  const int64_t *begin, *end;

  inline List(const Shown& axis, int64_t i)
      : begin(axis.outputs.data() + axis.first[i]), end(axis.outputs.data() + axis.first[i + 1]) {}
  inline bool one() const { return end - begin == 1; }
};

template <class T, class S>
inline T sum_at(const Backward& p, const S* plane, List d, List h, List w, int64_t i, int64_t n) {
  T sum = T::zero();
  for (const int64_t* od = d.begin; od < d.end; ++od) {
    for (const int64_t* oh = h.begin; oh < h.end; ++oh) {
      for (const int64_t* ow = w.begin; ow < w.end; ++ow) {
        const S* dy = plane + ((*od * p.h.out + *oh) * p.w.out + *ow) * p.voxel + i;
        sum = sum + (n == T::width ? T::load(dy) : T::load(dy, n));
      }
    }
  }
  return sum;
}

// dx[0, n), of one voxel or of a run of voxels, of which the first is shown by the outputs in d, h and w.
template <class T, class S>
inline void gather(const Backward& p, const S* plane, List d, List h, List w, S* dx, int64_t n) {
  int64_t i = 0;
  if (d.one() && h.one() && w.one()) {
    const S* dy = plane + ((*d.begin * p.h.out + *h.begin) * p.w.out + *w.begin) * p.voxel;
    const bool stream = p.stream && reinterpret_cast<uintptr_t>(dx) % 64 == 0;
    for (; i + T::width <= n; i += T::width) {
      if (stream) {
        T::load(dy + i).stream(dx + i);
      } else {
        T::load(dy + i).store(dx + i);
      }
    }
  }
  for (; i < n; i += T::width) {
    const int64_t count = std::min(T::width, n - i);
    sum_at<T>(p, plane, d, h, w, i, count).store(dx + i, count);
  }
}

// A row of voxels of several elements.
template <class T, class S>
inline void sum_voxels(const Backward& p, const S* plane, List d, List h, S* dx) {
  for (int64_t i = 0; i < p.w.in;) {
    const int64_t next = i == p.w.begin ? std::max(p.w.end, i + 1) : i + 1;
    gather<T>(p, plane, d, h, List(p.w, i), dx + i * p.voxel, (next - i) * p.voxel);
    i = next;
  }
}

template <class T, class S>
inline T load_up_to(const S* p, int64_t n) {
  return n >= T::width ? T::load(p) : T::load(p, n);
}

template <class T, class S>
inline void store_up_to(T value, S* p, int64_t n, bool stream) {
  if (n < T::width) {
    value.store(p, n);
  } else if (stream) {
    value.stream(p);
  } else {
    value.store(p);
  }
}

// A row of voxels of one element, each of which one output shows.
template <class T, class S>
inline void copy_row(const S* dy, S* dx, int64_t n, bool stream) {
  for (int64_t i = 0; i < n; i += T::width) store_up_to(load_up_to<T>(dy + i, n - i), dx + i, n - i, stream);
}

// A row of voxels of one element: sums of vectors, to which the border is added before they are stored.
template <class T, class S>
inline void sum_row(const Backward& p, const S* plane, List d, List h, S* dx, bool stream) {
  using E = typename T::element;
  constexpr int64_t chunk = 256;
  E sums[chunk];
  for (int64_t first = 0; first < p.w.in; first += chunk) {
    const int64_t n = std::min(chunk, p.w.in - first);
    const int64_t begin = std::clamp<int64_t>(p.w.inner_begin - first, 0, n);
    const int64_t end = std::clamp<int64_t>(p.w.inner_end - first, begin, n);
    std::fill(sums, sums + begin, E{0});
    std::fill(sums + end, sums + n, E{0});
    for (int64_t i = begin; i < end; i += T::width) {
      T sum = T::zero();
      for (const int64_t* od = d.begin; od < d.end; ++od) {
        for (const int64_t* oh = h.begin; oh < h.end; ++oh) {
          const S* const dy = plane + (*od * p.h.out + *oh) * p.w.out + p.w.before + first;
          sum = sum + load_up_to<T>(dy + i, end - i);
        }
      }
      store_up_to(sum, sums + i, end - i, false);
    }
    for (const Shown::Pair& shows : p.w.border) {
      if (shows.input < first || shows.input >= first + n) continue;
      for (const int64_t* od = d.begin; od < d.end; ++od) {
        for (const int64_t* oh = h.begin; oh < h.end; ++oh) {
          const S* const dy = plane + (*od * p.h.out + *oh) * p.w.out;
          sums[shows.input - first] += static_cast<E>(to_float(dy[shows.output]));
        }
      }
    }
    for (int64_t i = 0; i < n; i += T::width) {
      store_up_to(load_up_to<T>(sums + i, n - i), dx + first + i, n - i, stream);
    }
  }
}

template <class T, class S>
void backward(const Backward& p, int64_t begin, int64_t end) {
  const bool copies = p.w.border.empty() && p.w.inner_begin == 0 && p.w.inner_end == p.w.in;
  const bool stream = p.stream && p.w.in * static_cast<int64_t>(sizeof(S)) % 64 == 0;  // of rows of elements
  int64_t h = begin % p.h.in, d = begin / p.h.in % p.d.in, plane = begin / p.h.in / p.d.in;
  for (int64_t row = begin; row < end; ++row) {
    const S* const dy = static_cast<const S*>(p.dy) + plane * p.d.out * p.h.out * p.w.out * p.voxel;
    S* const dx = static_cast<S*>(p.dx) + row * p.w.in * p.voxel;
    const List of_d(p.d, d), of_h(p.h, h);
    if (p.voxel > 1) {
      sum_voxels<T>(p, dy, of_d, of_h, dx);
    } else if (copies && of_d.one() && of_h.one()) {
      const int64_t from = (*of_d.begin * p.h.out + *of_h.begin) * p.w.out + p.w.before;
      copy_row<T>(dy + from, dx, p.w.in, stream);
    } else {
      sum_row<T>(p, dy, of_d, of_h, dx, stream);
    }
    if (++h < p.h.in) continue;
    h = 0;
    if (++d < p.d.in) continue;
    d = 0;
    ++plane;
  }
  if (p.stream) VecBytes::stream_end();
}

#define VOLNET_DEFINE(DTYPE, T, S) \
  void backward_##DTYPE(const Backward& p, int64_t begin, int64_t end) { backward<T, S>(p, begin, end); }
VOLNET_DEFINE(f32, Vec, float)
VOLNET_DEFINE(bf16, Vec, bfloat16)

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

template <class T, class S>
void backward(const Backward& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t plane = row / p.h.in / p.d.in;
    const S* const dy = static_cast<const S*>(p.dy) + plane * p.d.out * p.h.out * p.w.out * p.voxel;
    S* const dx = static_cast<S*>(p.dx) + row * p.w.in * p.voxel;
    const List d(p.d, row / p.h.in % p.d.in), h(p.h, row % p.h.in);
    for (int64_t i = 0; i < p.w.in;) {
      const int64_t next = i == p.w.begin ? std::max(p.w.end, i + 1) : i + 1;
      gather<T>(p, dy, d, h, List(p.w, i), dx + i * p.voxel, (next - i) * p.voxel);
      i = next;
    }
  }
  if (p.stream) VecBytes::stream_end();
}

#define VOLNET_DEFINE(DTYPE, T, S) \
  void backward_##DTYPE(const Backward& p, int64_t begin, int64_t end) { backward<T, S>(p, begin, end); }
VOLNET_DEFINE(f32, Vec, float)
VOLNET_DEFINE(bf16, Vec, bfloat16)

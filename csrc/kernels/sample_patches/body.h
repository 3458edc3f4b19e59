// Included inside volnet::sample_patches::VOLNET_ISA, after Vec. sample_patches.h is the specification.

#include "kernels/bytes/writers.h"

// The part of [start, start + size) that is inside [0, n), counted from start: empty ones have begin == end.
struct Inside {
  int64_t begin, end;

  inline Inside(int64_t start, int64_t size, int64_t n)
      : begin(std::clamp<int64_t>(-start, 0, size)), end(std::clamp<int64_t>(n - start, begin, size)) {}
};

// The hardware's prefetcher follows long runs of lines; the rows of a patch are too short for it.
constexpr int64_t rows_ahead = 8;

static inline void prefetch_bytes(const char* from, int64_t n) {
  for (int64_t i = 0; i < n; i += 64) __builtin_prefetch(from + i);
  __builtin_prefetch(from + n - 1);
}

template <class Writer>
static inline void write_slices(const Forward& f, int64_t begin, int64_t end, Writer& out) {
  const VecBytes pad = VecBytes::broadcast(f.pad);
  const int64_t row_bytes = f.size.w * f.element_size;
  for (int64_t slice = begin; slice < end; ++slice) {
    const int64_t i = slice % f.size.d, c = slice / f.size.d % f.channels, p = slice / f.size.d / f.channels;
    const int64_t* center = f.centers + 3 * p;
    const int64_t d = patch_start(center[0], f.size.d, f.extent.d) + i;
    const int64_t start_h = patch_start(center[1], f.size.h, f.extent.h);
    const int64_t start_w = patch_start(center[2], f.size.w, f.extent.w);
    const Inside rows(start_h, f.size.h, f.extent.h), columns(start_w, f.size.w, f.extent.w);
    if (d < 0 || d >= f.extent.d || rows.begin == rows.end || columns.begin == columns.end) {
      out.fill(pad, f.size.h * row_bytes);
      continue;
    }
    const int64_t left = columns.begin * f.element_size, right = row_bytes - columns.end * f.element_size;
    const int64_t middle = row_bytes - left - right;
    const char* from = f.volume + c * f.stride_c + d * f.stride_d + (start_h + rows.begin) * f.stride_h +
                       (start_w + columns.begin) * f.element_size;
    out.fill(pad, rows.begin * row_bytes);
    for (int64_t j = rows.begin; j < rows.end; ++j, from += f.stride_h) {
      if (f.stream && j + rows_ahead < rows.end) prefetch_bytes(from + rows_ahead * f.stride_h, middle);
      out.fill(pad, left);
      out.copy(from, middle);
      out.fill(pad, right);
    }
    out.fill(pad, (f.size.h - rows.end) * row_bytes);
  }
  out.finish();
}

void forward(const Forward& f, int64_t begin, int64_t end) {
  char* to = f.patches + begin * f.size.h * f.size.w * f.element_size;
  if (f.stream) {
    Streamed out(to);
    write_slices(f, begin, end, out);
  } else {
    Direct out{to};
    write_slices(f, begin, end, out);
  }
}

template <class T>
static inline void add_row(compute_t<T>* sum, const T* x, int64_t n) {
  int64_t i = 0;
  if constexpr (sizeof(T) < sizeof(double)) {
    for (; i + Vec::width <= n; i += Vec::width) (Vec::load(sum + i) + Vec::load(x + i)).store(sum + i);
    (Vec::load(sum + i, n - i) + Vec::load(x + i, n - i)).store(sum + i, n - i);
  } else {
    for (; i < n; ++i) sum[i] += x[i];
  }
}

template <class T>
static inline void store_row(T* y, const compute_t<T>* sum, int64_t n) {
  int64_t i = 0;
  if constexpr (sizeof(T) < sizeof(double)) {
    for (; i + Vec::width <= n; i += Vec::width) Vec::load(sum + i).store(y + i);
    Vec::load(sum + i, n - i).store(y + i, n - i);
  } else {
    for (; i < n; ++i) y[i] = sum[i];
  }
}

template <class T>
static inline void backward_plane(const Backward<T>& b, int64_t plane, int64_t* covering, compute_t<T>* row) {
  const int64_t c = plane / b.extent.d, d = plane % b.extent.d;
  int64_t count = 0;
  for (int64_t p = 0; p < b.patches; ++p) {
    const int64_t i = d - patch_start(b.centers[3 * p], b.size.d, b.extent.d);
    if (i >= 0 && i < b.size.d) covering[count++] = p;
  }
  T* out = b.volume_grad + plane * b.extent.h * b.extent.w;
  for (int64_t h = 0; h < b.extent.h; ++h, out += b.extent.w) {
    for (int64_t k = 0; k < b.extent.w; ++k) row[k] = 0;
    for (int64_t n = 0; n < count; ++n) {
      const int64_t p = covering[n];
      const int64_t* center = b.centers + 3 * p;
      const int64_t i = d - patch_start(center[0], b.size.d, b.extent.d);
      const int64_t j = h - patch_start(center[1], b.size.h, b.extent.h);
      if (j < 0 || j >= b.size.h) continue;
      const int64_t start = patch_start(center[2], b.size.w, b.extent.w);
      const Inside columns(start, b.size.w, b.extent.w);
      const T* grad = b.grad + (((p * b.channels + c) * b.size.d + i) * b.size.h + j) * b.size.w;
      add_row(row + start + columns.begin, grad + columns.begin, columns.end - columns.begin);
    }
    store_row(out, row, b.extent.w);
  }
}

void backward_f32(const Backward<float>& b, int64_t plane, int64_t* covering, float* row) {
  backward_plane(b, plane, covering, row);
}
void backward_bf16(const Backward<bfloat16>& b, int64_t plane, int64_t* covering, float* row) {
  backward_plane(b, plane, covering, row);
}

// Included inside volnet::roi_crop3d::VOLNET_ISA.

template <class V, class T, class A = compute_t<T>>
static inline void add(A* sum, const T* x, int64_t n) {
  int64_t i = 0;
  for (; i + V::width <= n; i += V::width) (V::load(sum + i) + V::load(x + i)).store(sum + i);
  if (i < n) (V::load(sum + i, n - i) + V::load(x + i, n - i)).store(sum + i, n - i);
}

template <class V, class T, class A = compute_t<T>>
static inline void backward(const Backward<T>& b, int64_t n, int64_t plane, int64_t d, A* scratch) {
  const int64_t size = b.h * b.w * b.inner;
  T* dx = b.dx + ((n * b.planes + plane) * b.d + d) * size;
  A* sums = nullptr;
  if constexpr (sizeof(T) == sizeof(A)) {
    sums = dx;
  } else {
    sums = scratch;
  }
  std::fill(sums, sums + size, A(0));
  for (int64_t k = 0; k < b.count; ++k) {
    const Crop<T>& crop = b.crops[k];
    const int64_t i = d - crop.start[0];
    if (i < 0 || i >= crop.size[0]) continue;
    const int64_t h_begin = std::max<int64_t>(crop.start[1], 0);
    const int64_t h_end = std::min(crop.start[1] + crop.size[1], b.h);
    const int64_t w_begin = std::max<int64_t>(crop.start[2], 0);
    const int64_t w_end = std::min(crop.start[2] + crop.size[2], b.w);
    if (w_begin >= w_end) continue;
    for (int64_t h = h_begin; h < h_end; ++h) {
      const int64_t row = (plane * crop.size[0] + i) * crop.size[1] + h - crop.start[1];
      add<V>(sums + (h * b.w + w_begin) * b.inner,
             crop.grad + (row * crop.size[2] + w_begin - crop.start[2]) * b.inner,
             (w_end - w_begin) * b.inner);
    }
  }
  if constexpr (sizeof(T) != sizeof(A)) {
    int64_t j = 0;
    for (; j + V::width <= size; j += V::width) V::load(sums + j).store(dx + j);
    if (j < size) V::load(sums + j, size - j).store(dx + j, size - j);
  }
}

// Tensors whose elements fill one piece of memory, whatever the order of their axes in it.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "ops/tensors.h"

namespace volnet {

inline std::vector<int64_t> strides_of(const Tensor& x) {
  std::vector<int64_t> strides(static_cast<size_t>(x.dim()));
  for (size_t i = 0; i < strides.size(); ++i) strides[i] = x.stride(static_cast<int64_t>(i));
  return strides;
}

inline bool is_dense(const Tensor& x) {
  if (x.numel() == 0) return true;
  const auto sizes = sizes_of(x), strides = strides_of(x);
  std::vector<size_t> axes(sizes.size());
  std::iota(axes.begin(), axes.end(), size_t{0});
  std::sort(axes.begin(), axes.end(), [&](size_t a, size_t b) { return strides[a] < strides[b]; });
  int64_t step = 1;
  for (const size_t axis : axes) {
    if (sizes[axis] == 1) continue;
    if (strides[axis] != step) return false;
    step *= sizes[axis];
  }
  return true;
}

// x itself where it is dense, else a copy: of a volume in its layout, of others in plain order.
inline Tensor dense(const Tensor& x, const char* op) {
  if (is_dense(x)) return x;
  return x.dim() == 5 ? to_layout(x, layout_of(x), op) : torch::stable::contiguous(x);
}

// x with its elements where those of `like`, which is dense, have them.
inline Tensor in_order_of(const Tensor& x, const Tensor& like, const char* op) {
  if (has_strides(x, strides_of(like))) return x;
  if (like.dim() == 5) {
    for (const Layout5 layout : {Layout5::plain, Layout5::channels_last}) {
      const auto sizes = sizes_of(like);
      if (has_strides(like,
                      layout == Layout5::plain ? contiguous_strides(sizes) : channels_last_strides(sizes)))
        return to_layout(x, layout, op);
    }
  }
  Tensor copy = empty_strided(sizes_of(like), strides_of(like), x.scalar_type(),
                              static_cast<int64_t>(x.element_size()), op);
  torch::stable::copy_(copy, x);
  return copy;
}

template <class T>
Tensor empty_like(const Tensor& x, const char* op) {
  return empty_strided(sizes_of(x), strides_of(x), ScalarTypeOf<T>::value, sizeof(T), op);
}

}  // namespace volnet

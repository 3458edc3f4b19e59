// What every operator needs around its kernel: results from the pool, layouts, and threads.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <sstream>
#include <string>
#include <vector>

#include "memory/pool.h"
#include "torch_abi.h"

namespace volnet {

inline std::string shape_text(const std::vector<int64_t>& sizes) {
  std::ostringstream text;
  text << '[';
  for (size_t i = 0; i < sizes.size(); ++i) text << (i ? ", " : "") << sizes[i];
  text << ']';
  return text.str();
}

inline std::vector<int64_t> sizes_of(const Tensor& x) {
  std::vector<int64_t> sizes(static_cast<size_t>(x.dim()));
  for (size_t i = 0; i < sizes.size(); ++i) sizes[i] = x.size(static_cast<int64_t>(i));
  return sizes;
}

inline std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t step = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = step;
    step *= std::max<int64_t>(sizes[i], 1);
  }
  return strides;
}

inline std::vector<int64_t> channels_last_strides(const std::vector<int64_t>& n) {
  const auto at = [&](size_t i) { return std::max<int64_t>(n[i], 1); };
  return {at(2) * at(3) * at(4) * at(1), 1, at(3) * at(4) * at(1), at(4) * at(1), at(1)};
}

enum class Layout5 { plain, channels_last };  // [N, C, D, H, W] dense, or the same with the channel innermost

inline int64_t numel(const std::vector<int64_t>& sizes) {
  int64_t count = 1;
  for (const int64_t size : sizes) count *= size;
  return count;
}

// Whether x lies dense with these strides; the stride of an axis of size 1 does not matter.
inline bool has_strides(const Tensor& x, const std::vector<int64_t>& strides) {
  if (x.numel() == 0) return true;
  for (size_t i = 0; i < strides.size(); ++i) {
    const auto axis = static_cast<int64_t>(i);
    if (x.size(axis) > 1 && x.stride(axis) != strides[i]) return false;
  }
  return true;
}

// The layout a result should have: that of the input, plain where its strides say neither. One channel is
// dense both ways, and then the stride of the channel tells what the caller means, as in torch.
inline Layout5 layout_of(const Tensor& x) {
  const bool one_voxel = x.size(2) * x.size(3) * x.size(4) == 1;
  return x.stride(1) == 1 && !one_voxel ? Layout5::channels_last : Layout5::plain;
}

// An uninitialised tensor from the pool.
inline Tensor empty_strided(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                            ScalarType dtype, int64_t element_size, const char* op) {
  void* block = memory::allocate(numel(sizes) * element_size, op, sizes);
  return torch::stable::from_blob(block, sizes, strides,
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), dtype,
                                  [](void* data) { memory::release(data); });
}

// The strides for a result that a channels_last kernel writes and that is wanted in `wanted`: one channel or
// one voxel lies the same both ways, and its strides should then say what is wanted.
inline Layout5 written_layout(const std::vector<int64_t>& sizes, Layout5 wanted) {
  const bool same_memory = sizes[1] == 1 || sizes[2] * sizes[3] * sizes[4] == 1;
  return same_memory ? wanted : Layout5::channels_last;
}

template <class T>
Tensor empty_plain(const std::vector<int64_t>& sizes, const char* op) {
  return empty_strided(sizes, contiguous_strides(sizes), ScalarTypeOf<T>::value, sizeof(T), op);
}

template <class T>
Tensor empty_volume(const std::vector<int64_t>& sizes, Layout5 layout, const char* op) {
  return empty_strided(sizes,
                       layout == Layout5::plain ? contiguous_strides(sizes) : channels_last_strides(sizes),
                       ScalarTypeOf<T>::value, sizeof(T), op);
}

// How many workers for_each_piece uses: what a call needs for scratch per worker.
int64_t worker_count(int64_t pieces);

// Calls f(piece, worker) for every piece in [0, pieces), on torch's threads; a free worker takes the next
// piece. A piece must not depend on which worker runs it, so results do not depend on the number of threads.
void for_each_piece_impl(int64_t pieces, void (*call)(int64_t, int64_t, void*), void* context);

template <class F>
void for_each_piece(int64_t pieces, const F& f) {
  for_each_piece_impl(
      pieces,
      [](int64_t piece, int64_t worker, void* context) { (*static_cast<const F*>(context))(piece, worker); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

// x in the given layout: itself if it lies so already, else a copy from the pool.
Tensor to_layout(const Tensor& x, Layout5 layout, const char* op);

}  // namespace volnet

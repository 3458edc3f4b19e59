#include <cstring>

#include "ops/tensors.h"

namespace volnet {
namespace {

constexpr const char* op = "_to_layout";

// x [N, C, D, H, W] in a layout, always as a tensor of its own with that layout's strides.
Tensor own_layout(const Tensor& x, bool channels_last) {
  VOLNET_CHECK(x.dim() == 5, op, ": x must be [N, C, D, H, W], got ", shape_text(sizes_of(x)));
  const auto sizes = sizes_of(x);
  const auto strides = channels_last ? channels_last_strides(sizes) : contiguous_strides(sizes);
  const Tensor dense = to_layout(x, channels_last ? Layout5::channels_last : Layout5::plain, op);
  bool own = dense.const_data_ptr() != x.const_data_ptr();
  for (size_t i = 0; i < strides.size(); ++i) own &= dense.stride(static_cast<int64_t>(i)) == strides[i];
  if (own) return dense;

  const auto element_size = static_cast<int64_t>(x.element_size());
  Tensor y = empty_strided(sizes, strides, x.scalar_type(), element_size, op);
  const auto* src = static_cast<const char*>(dense.const_data_ptr());
  auto* dst = static_cast<char*>(y.mutable_data_ptr());
  const int64_t bytes = numel(sizes) * element_size;
  constexpr int64_t piece_bytes = int64_t{128} << 10;
  for_each_piece((bytes + piece_bytes - 1) / piece_bytes, [&](int64_t piece, int64_t) {
    const int64_t begin = piece * piece_bytes;
    std::memcpy(dst + begin, src + begin, static_cast<size_t>(std::min(piece_bytes, bytes - begin)));
  });
  return y;
}

}  // namespace
}  // namespace volnet

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) { m.def("_to_layout(Tensor x, bool channels_last) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) { m.impl("_to_layout", TORCH_BOX(&volnet::own_layout)); }

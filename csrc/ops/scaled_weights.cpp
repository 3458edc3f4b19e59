// The weights of a convolution times a scale of each filter: a batch norm folded into them. Like packed
// weights they are kept while neither the weights nor the scale change.
#include <array>

#include "ops/packed_weights.h"
#include "ops/tensors.h"

namespace volnet {
namespace {

constexpr const char* op = "_scaled_weights";

template <class T, class Round>
void scale_rows(const Tensor& weight, const Tensor& scale, int64_t axis, T* to, const Round& round) {
  // Dense [before, size, after] in the order of memory, whatever the order of the axes.
  const int64_t after = weight.stride(axis), size = weight.size(axis), rows = weight.numel() / after;
  const auto* from = static_cast<const T*>(weight.const_data_ptr());
  const auto* factors = static_cast<const float*>(scale.const_data_ptr());
  constexpr int64_t each = 1024;
  for_each_piece((rows + each - 1) / each, [&](int64_t piece, int64_t) {
    const int64_t end = std::min((piece + 1) * each, rows);
    for (int64_t row = piece * each; row < end; ++row) {
      const float factor = factors[row % size];
      for (int64_t i = row * after; i < (row + 1) * after; ++i) to[i] = round(to_float(from[i]) * factor);
    }
  });
}

// weight of any rank in float32 or bfloat16, scale [weight.size(axis)] of float32; the result has the strides
// of the weight.
Tensor scaled_weights(const Tensor& given, const Tensor& scale, int64_t axis) {
  VOLNET_CHECK(axis >= 0 && axis < given.dim() && scale.dim() == 1 && scale.size(0) == given.size(axis) &&
                   scale.scalar_type() == ScalarType::Float && scale.is_contiguous(),
               op, ": scale must be [", given.size(axis), "] of float32, got ", shape_text(sizes_of(scale)));
  VOLNET_CHECK(given.scalar_type() == ScalarType::Float || given.scalar_type() == ScalarType::BFloat16, op,
               ": weight must be float32 or bfloat16");
  const Weights weight(is_dense(given) ? given : torch::stable::contiguous(given));
  const Tensor& tensor = weight.tensor();
  const auto element_size = static_cast<int64_t>(tensor.element_size());
  const digest::Digest factors =
      digest_of(scale.const_data_ptr(), scale.numel() * static_cast<int64_t>(sizeof(float)));
  const PackingKey packing = {packing_id(&scaled_weights), axis, static_cast<int64_t>(factors.first),
                              static_cast<int64_t>(factors.second)};
  const PackedBlock block = weight.packed(packing, tensor.numel() * element_size, op, [&](void* to) {
    if (tensor.scalar_type() == ScalarType::Float) {
      scale_rows(tensor, scale, axis, static_cast<float*>(to), [](float value) { return value; });
    } else {
      scale_rows(tensor, scale, axis, static_cast<bfloat16*>(to), to_bfloat16);
    }
  });
  if (weight.digest()) {
    const std::array<uint64_t, 5> parts = {weight.digest()->first, weight.digest()->second, factors.first,
                                           factors.second, static_cast<uint64_t>(axis)};
    know_digest(block->as<void>(), digest_of(parts.data(), static_cast<int64_t>(sizeof(parts))));
  }
  std::vector<int64_t> strides;
  for (int64_t i = 0; i < tensor.dim(); ++i) strides.push_back(tensor.stride(i));
  return torch::stable::from_blob(
      block->as<void>(), sizes_of(tensor), strides, torch::stable::Device(torch::headeronly::DeviceType::CPU),
      tensor.scalar_type(), [block, known = weight.digest().has_value()](void* data) {
        if (known) forget_digest(data);
      });
}

}  // namespace
}  // namespace volnet

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) {
  m.def("_scaled_weights(Tensor weight, Tensor scale, int axis) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) { m.impl("_scaled_weights", TORCH_BOX(&volnet::scaled_weights)); }

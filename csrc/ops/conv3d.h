// What conv3d and conv_transpose3d share: the direct kernels of a dtype, their weights, and the layout of a
// result.
#pragma once

#include <span>

#include "kernels/conv3d/conv3d.h"
#include "kernels/conv3d/planner.h"
#include "ops/packed_weights.h"
#include "ops/tensors.h"

namespace volnet {

template <class S>
struct Tables;
template <>
struct Tables<float> {
  static const auto& direct() { return conv3d::direct_f32; }
  static const auto& depthwise() { return conv3d::depthwise_f32; }
  static const auto& apply_inputs() { return conv3d::apply_inputs_f32; }
};
template <>
struct Tables<bfloat16> {
  static const auto& direct() { return conv3d::direct_bf16; }
  static const auto& depthwise() { return conv3d::depthwise_bf16; }
  static const auto& apply_inputs() { return conv3d::apply_inputs_bf16; }
};
template <>
struct Tables<double> {
  static const auto& direct() { return conv3d::direct_f64; }
  static const auto& depthwise() { return conv3d::depthwise_f64; }
  static const auto& apply_inputs() { return conv3d::apply_inputs_f64; }
};

// What the packing of a call's weights depends on, whatever the kernel: sizes, strides, and which tap is
// where.
inline void append_packing(const conv3d::Convolution& call, const conv3d::WeightStrides& strides,
                           PackingKey& packing) {
  packing.insert(packing.end(), {call.groups, call.channels, call.filters, call.k_block, strides.group,
                                 strides.filter, strides.channel});
  for (size_t i = 0; i < 3; ++i) {
    packing.push_back(strides.taps[i]);
    packing.push_back(static_cast<int64_t>(call.axes[i].taps.size()));
    for (const conv3d::Tap& tap : call.axes[i].taps) packing.push_back(tap.index);
  }
}

// Packs the weights of planned calls of the direct or the depthwise kernel, and points the calls to them.
template <class S>
PackedBlock packed_for_direct(const Weights& weight, const conv3d::WeightStrides& strides,
                              std::span<conv3d::Convolution> calls, const char* what) {
  using A = compute_t<S>;
  const bool depthwise = is_depthwise(calls[0]);
  PackingKey packing = {depthwise ? packing_id(&conv3d::pack_depthwise_weights<A, S>)
                                  : packing_id(&conv3d::pack_weights<A, S>)};
  std::vector<int64_t> begin = {0};
  for (const conv3d::Convolution& call : calls) {
    append_packing(call, strides, packing);
    begin.push_back(begin.back() + (depthwise ? packed_depthwise_size(call) : packed_size(call)));
  }
  const S* w = data<S>(weight.tensor());
  PackedBlock block =
      weight.packed(packing, begin.back() * static_cast<int64_t>(sizeof(A)), what, [&](void* to) {
        for (size_t i = 0; i < calls.size(); ++i) {
          A* packed = static_cast<A*>(to) + begin[i];
          if (depthwise) {
            pack_depthwise_weights(w, strides, calls[i], packed);
          } else {
            for_each_piece(packing_pieces(calls[i]), [&](int64_t piece, int64_t) {
              pack_weights(w, strides, calls[i], piece, packed);
            });
          }
        }
      });
  for (size_t i = 0; i < calls.size(); ++i) calls[i].weights = block->template as<A>() + begin[i];
  return block;
}

// As torch: channels_last where the input or the weight says so. A volume of one channel does not say, but
// the weights of a model that was moved to channels_last do.
inline Layout5 result_layout(const Tensor& x, const Tensor& weight) {
  const bool last = layout_of(x) == Layout5::channels_last || layout_of(weight) == Layout5::channels_last;
  return last ? Layout5::channels_last : Layout5::plain;
}

}  // namespace volnet

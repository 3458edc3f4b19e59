// What conv3d and conv_transpose3d share: the direct kernels of a dtype, and the layout of a result.
#pragma once

#include "kernels/conv3d/conv3d.h"
#include "ops/tensors.h"

namespace volnet {

template <class S>
struct Tables;
template <>
struct Tables<float> {
  static const auto& direct() { return conv3d::direct_f32; }
  static const auto& depthwise() { return conv3d::depthwise_f32; }
};
template <>
struct Tables<bfloat16> {
  static const auto& direct() { return conv3d::direct_bf16; }
  static const auto& depthwise() { return conv3d::depthwise_bf16; }
};
template <>
struct Tables<double> {
  static const auto& direct() { return conv3d::direct_f64; }
  static const auto& depthwise() { return conv3d::depthwise_f64; }
};

// As torch: channels_last where the input or the weight says so. A volume of one channel does not say, but
// the weights of a model that was moved to channels_last do.
inline Layout5 result_layout(const Tensor& x, const Tensor& weight) {
  const bool last = layout_of(x) == Layout5::channels_last || layout_of(weight) == Layout5::channels_last;
  return last ? Layout5::channels_last : Layout5::plain;
}

}  // namespace volnet

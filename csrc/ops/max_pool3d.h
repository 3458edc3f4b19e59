// Max pooling over any axes: what max_pool3d and adaptive_max_pool3d share.
#pragma once

#include <functional>

#include "ops/pooling.h"
#include "ops/tensors.h"

namespace volnet {

// narrow: int32 where the places of a plane fit, for what a backward keeps; else int64.
enum class Indices { none, wide, narrow };

// x, grad: [N, C, D, H, W] as the axes say; op: who asks, for messages.
std::tuple<Tensor, std::optional<Tensor>> maximum(const char* op, const Tensor& x, const pooling::Axes& axes,
                                                  Indices indices);
// The same where each plane, of one n and c, has its own axes.
std::tuple<Tensor, std::optional<Tensor>> maximum_of_planes(
    const char* op, const Tensor& x, const std::vector<int64_t>& output_size,
    const std::function<pooling::Axes(int64_t plane)>& axes_of, Indices indices);
Tensor maximum_backward(const char* op, const Tensor& grad, const Tensor& indices,
                        const std::vector<int64_t>& input_size, const pooling::Axes& axes,
                        bool channels_last);

// That a gradient and the indices of the maxima fit together and to an input of input_size.
void check_indices(const char* op, const Tensor& grad, const Tensor& indices,
                   const std::vector<int64_t>& input_size);

}  // namespace volnet

// Turns the arguments of a convolution into calls of kernels: axes with their taps, the blocking, the split.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "kernels/conv3d/conv3d.h"

namespace volnet::conv3d {

// One axis of a convolution as its caller describes it.
struct AxisArguments {
  int64_t input, kernel, stride, padding_begin, padding_end, dilation;

  int64_t output() const {
    return (input + padding_begin + padding_end - dilation * (kernel - 1) - 1) / stride + 1;
  }
};

Axis forward_axis(const AxisArguments& arguments);

// One axis per residue of the forward stride; together they write every voxel of the gradient once.
std::vector<Axis> data_gradient_axes(const AxisArguments& arguments);

// One tap, each voxel for itself: the volume is one row of voxels.
bool is_pointwise(const Convolution& call);

// Joins rows of a pointwise convolution to longer ones, of so many voxels at least where there are so many;
// the depth becomes 1.
void merge_axes(Convolution& call, int64_t voxels);

// Chooses blocking, split and scratch of a call whose sizes and axes are set.
void plan(const DirectKernel& kernel, int64_t element_size, Convolution& call);
void plan_depthwise(const DirectKernel& kernel, Convolution& call);
void plan(const GradientKernel& kernel, int64_t element_size, WeightGradient& call);

// Whether the direct kernel also writes plain volumes [N, K, D, H, W]; x has one channel then, either layout.
bool direct_serves_plain(const Convolution& call);

// Packed weights of one channel a group and one filter a group are a depthwise convolution's.
inline bool is_depthwise(const Convolution& call) {
  return call.channels == 1 && call.filters == 1 && call.groups > 1;
}

// The work of a planned call of the direct kernel, in multiply-adds at the speed of an ideal one.
double direct_cost(const Convolution& call);

// Where weight element (group, filter, channel, tap) lies, in elements.
struct WeightStrides {
  int64_t group, filter, channel;
  std::array<int64_t, 3> taps;
};

// Elements of the packed weights (direct, depthwise), and how many pieces packing the direct ones has.
int64_t packed_size(const Convolution& call);
int64_t packed_depthwise_size(const Convolution& call);
int64_t packing_pieces(const Convolution& call);

// packed[group][block][tap d][tap h][tap w][channel][k_block] = w, in the compute type A.
template <class A, class S>
void pack_weights(const S* w, const WeightStrides& strides, const Convolution& call, int64_t piece,
                  A* packed);

// packed[tap d][tap h][tap w][k_block] = w, in the compute type A; groups are the channels.
template <class A, class S>
void pack_depthwise_weights(const S* w, const WeightStrides& strides, const Convolution& call, A* packed);

}  // namespace volnet::conv3d

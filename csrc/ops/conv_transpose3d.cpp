// torch.ops.volnet.conv_transpose3d: the gradient of a convolution's data, as an operator of its own.
#include <algorithm>
#include <array>
#include <functional>

#include "isa/isa.h"
#include "kernels/conv3d/conv3d.h"
#include "kernels/conv3d/planner.h"
#include "ops/conv3d.h"
#include "ops/epilogue.h"
#include "ops/tensors.h"

namespace volnet {
namespace {

using conv3d::Axis;
using conv3d::AxisArguments;
using conv3d::Convolution;
using Ints = std::vector<int64_t>;

// The convolution from the output to the input whose data gradient this is.
std::array<AxisArguments, 3> parse(const Ints& input_size, const Ints& weight_size, const Ints& stride,
                                   const Ints& padding, const Ints& output_padding, const Ints& dilation,
                                   int64_t groups) {
  VOLNET_CHECK(input_size.size() == 5 && weight_size.size() == 5,
               "conv_transpose3d: input and weight must be 5-D");
  VOLNET_CHECK(
      stride.size() == 3 && padding.size() == 3 && output_padding.size() == 3 && dilation.size() == 3,
      "conv_transpose3d: stride, padding, output_padding and dilation need 3 values each");
  VOLNET_CHECK(groups > 0 && weight_size[0] % groups == 0 && input_size[1] == weight_size[0],
               "conv_transpose3d: input ", shape_text(input_size), " and weight ", shape_text(weight_size),
               " do not fit with groups=", groups);
  std::array<AxisArguments, 3> axes;
  for (size_t i = 0; i < 3; ++i) {
    const int64_t kernel = weight_size[2 + i];
    VOLNET_CHECK(stride[i] > 0 && dilation[i] > 0 && kernel > 0 && padding[i] >= 0 && output_padding[i] >= 0,
                 "conv_transpose3d: stride, dilation and kernel must be positive, paddings not negative");
    const int64_t output = (input_size[2 + i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (kernel - 1) +
                           output_padding[i] + 1;
    VOLNET_CHECK(input_size[2 + i] > 0 && output > 0, "conv_transpose3d: the output of input ",
                 shape_text(input_size), " and weight ", shape_text(weight_size), " would be empty");
    axes[i] = {output, kernel, stride[i], padding[i], padding[i] - output_padding[i], dilation[i]};
  }
  return axes;
}

// Runs the calls on the direct or the depthwise kernel. They read the same input, so their pieces take turns:
// what one has read, the next finds in the cache.
template <class S>
void run_direct(std::vector<Convolution> calls, const Weights& weight, const conv3d::WeightStrides& strides) {
  const auto kernel = (is_depthwise(calls[0]) ? Tables<S>::depthwise() : Tables<S>::direct()).best();
  int64_t pieces = 0, scratch_step = 0;
  for (Convolution& call : calls) {
    if (is_depthwise(call)) {
      plan_depthwise(kernel, call);
    } else {
      plan(kernel, sizeof(compute_t<S>), call);
    }
    pieces = std::max(pieces, call.pieces);
    scratch_step = std::max(scratch_step, (call.scratch + 63) / 64 * 64);
  }
  const PackedBlock packed = packed_for_direct<S>(weight, strides, calls, "conv_transpose3d weights");

  const auto count = static_cast<int64_t>(calls.size());
  const memory::Scratch scratch(scratch_step * worker_count(count * pieces), "conv_transpose3d scratch");
  for_each_piece(count * pieces, [&](int64_t piece, int64_t worker) {
    const Convolution& call = calls[static_cast<size_t>(piece % count)];
    if (piece / count >= call.pieces) return;
    kernel.run(call, piece / count, scratch.as<char>() + worker * scratch_step);
  });
}

template <class S>
Tensor forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
               const std::array<AxisArguments, 3>& axes, int64_t groups, const EpilogueArguments& arguments) {
  const Layout5 layout = result_layout(x, weight);
  const Tensor dense = to_layout(x, Layout5::channels_last, "conv_transpose3d");
  const Ints size{x.size(0), weight.size(1) * groups, axes[0].input, axes[1].input, axes[2].input};
  // One channel or one voxel is dense both ways: its strides say at once what the result is meant to be.
  const bool both_ways = size[1] == 1 || size[2] * size[3] * size[4] == 1;
  Tensor y = empty_volume<S>(size, both_ways ? layout : Layout5::channels_last, "conv_transpose3d");
  const PreparedEpilogue<S> epilogue(arguments, size, "conv_transpose3d");
  if (y.numel() == 0) return to_layout(y, layout, "conv_transpose3d");

  Convolution call;
  call.epilogue = epilogue.epilogue;
  call.x = dense.const_data_ptr();
  call.y = y.mutable_data_ptr();
  call.batch = x.size(0);
  call.groups = groups;
  call.channels = weight.size(0) / groups;
  call.filters = weight.size(1);
  std::vector<compute_t<S>> bias_values;
  if (bias) {
    const S* values = data<S>(*bias);
    for (int64_t k = 0; k < bias->size(0); ++k) bias_values.push_back(to_float(values[k * bias->stride(0)]));
    call.bias = bias_values.data();
  }
  const conv3d::WeightStrides strides{call.channels * weight.stride(0),
                                      weight.stride(1),
                                      weight.stride(0),
                                      {weight.stride(2), weight.stride(3), weight.stride(4)}};
  const Weights weights(weight);
  const std::vector<Convolution> calls = residues(call, axes);
  if constexpr (!std::is_same_v<S, double>) {
    const conv3d::Conditions conditions = conditions_of<S>(call);
    if (amx_serves(call, amx_parts(conditions))) {
      run_amx<S>(calls, conditions, weights, strides);
      return to_layout(y, layout, "conv_transpose3d");
    }
  }
  run_direct<S>(calls, weights, strides);
  return to_layout(y, layout, "conv_transpose3d");
}

Tensor run(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
           const std::array<AxisArguments, 3>& axes, int64_t groups, const EpilogueArguments& epilogue) {
  if (x.scalar_type() == ScalarType::Float) return forward<float>(x, weight, bias, axes, groups, epilogue);
  if (x.scalar_type() == ScalarType::Double) return forward<double>(x, weight, bias, axes, groups, epilogue);
  VOLNET_CHECK(x.scalar_type() == ScalarType::BFloat16,
               "conv_transpose3d: float32, float64 or bfloat16 expected");
  return forward<bfloat16>(x, weight, bias, axes, groups, epilogue);
}

void check_dtypes(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, int64_t groups) {
  VOLNET_CHECK(
      x.scalar_type() == weight.scalar_type() &&
          (!bias || (bias->scalar_type() == x.scalar_type() && bias->numel() == weight.size(1) * groups)),
      "conv_transpose3d: weight and bias must have the dtype of the input, and bias one value a channel");
}

Tensor conv_transpose3d_forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                const Ints& stride, const Ints& padding, const Ints& output_padding,
                                const Ints& dilation, int64_t groups) {
  const auto axes = parse(sizes_of(x), sizes_of(weight), stride, padding, output_padding, dilation, groups);
  check_dtypes(x, weight, bias, groups);
  return run(x, weight, bias, axes, groups, {"none", 0, {}, {}, false});
}

Tensor conv_transpose3d_fused(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                              const Ints& stride, const Ints& padding, const Ints& output_padding,
                              const Ints& dilation, int64_t groups, const std::string& activation,
                              double negative_slope, const std::optional<Tensor>& prelu_weight,
                              const std::optional<Tensor>& residual) {
  const auto axes = parse(sizes_of(x), sizes_of(weight), stride, padding, output_padding, dilation, groups);
  check_dtypes(x, weight, bias, groups);
  return run(x, weight, bias, axes, groups, {activation, negative_slope, prelu_weight, residual, false});
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) {
  m.def(
      "conv_transpose3d(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, "
      "int[] output_padding, int[] dilation, int groups) -> Tensor");
  m.def(
      "conv_transpose3d_fused(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, "
      "int[] output_padding, int[] dilation, int groups, str activation, float negative_slope, "
      "Tensor? prelu_weight, Tensor? residual) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) {
  m.impl("conv_transpose3d", TORCH_BOX(&conv_transpose3d_forward));
  m.impl("conv_transpose3d_fused", TORCH_BOX(&conv_transpose3d_fused));
}

}  // namespace volnet

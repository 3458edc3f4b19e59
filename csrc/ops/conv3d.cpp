// torch.ops.volnet.conv3d and its gradients. Padding is [d begin, d end, h begin, h end, w begin, w end].
#include <algorithm>
#include <array>
#include <limits>
#include <type_traits>

#include "isa/isa.h"
#include "kernels/conv3d/conv3d.h"
#include "kernels/conv3d/planner.h"
#include "kernels/conv3d/winograd.h"
#include "ops/conv3d.h"
#include "ops/epilogue.h"
#include "ops/input.h"
#include "ops/tensors.h"

namespace volnet {
namespace {

using conv3d::Axis;
using conv3d::AxisArguments;
using conv3d::Convolution;
using Ints = std::vector<int64_t>;

struct Arguments {
  std::array<AxisArguments, 3> axes;
  int64_t groups;

  Ints output_size() const { return {axes[0].output(), axes[1].output(), axes[2].output()}; }
};

Arguments parse(const Ints& input_size, const Ints& weight_size, const Ints& stride, const Ints& padding,
                const Ints& dilation, int64_t groups) {
  VOLNET_CHECK(input_size.size() == 5 && weight_size.size() == 5, "conv3d: input and weight must be 5-D");
  VOLNET_CHECK(stride.size() == 3 && dilation.size() == 3 && padding.size() == 6,
               "conv3d: stride and dilation need 3 values and padding 6");
  VOLNET_CHECK(groups > 0 && weight_size[0] % groups == 0 && input_size[1] == weight_size[1] * groups,
               "conv3d: input ", shape_text(input_size), " and weight ", shape_text(weight_size),
               " do not fit with groups=", groups);
  Arguments result{{}, groups};
  for (size_t i = 0; i < 3; ++i) {
    AxisArguments& axis = result.axes[i];
    axis = {input_size[2 + i], weight_size[2 + i], stride[i],
            padding[2 * i],    padding[2 * i + 1], dilation[i]};
    VOLNET_CHECK(axis.stride > 0 && axis.dilation > 0 && axis.kernel > 0 && axis.padding_begin >= 0 &&
                     axis.padding_end >= 0,
                 "conv3d: stride, dilation and kernel must be positive and padding not negative");
    VOLNET_CHECK(axis.input + axis.padding_begin + axis.padding_end >= axis.dilation * (axis.kernel - 1) + 1,
                 "conv3d: the kernel is larger than the padded input ", shape_text(input_size));
  }
  return result;
}

template <class A>
void run_pieces(const conv3d::DirectKernel& kernel, Convolution call) {
  const Statistics<A> statistics(call.epilogue, call.batch, call.groups * call.filters, "conv3d statistics");
  const int64_t scratch_step = (call.scratch + 63) / 64 * 64;
  const memory::Scratch scratch(scratch_step * worker_count(call.pieces), "conv3d scratch");
  for_each_piece(call.pieces, [&](int64_t piece, int64_t worker) {
    kernel.run(call, piece, scratch.as<char>() + worker * scratch_step);
  });
  statistics.merge();
}

// Where the input needs something done to it: writes it so, and has the call read that.
template <class S>
void apply_inputs(Convolution& call, std::optional<memory::Scratch>& applied) {
  if (!call.loads_inputs) return;
  const conv3d::AppliedInputs rows{
      call.inputs, call.batch, {call.axes[0].input, call.axes[1].input, call.axes[2].input}};
  applied.emplace(rows.pieces() * rows.size[2] * rows.channels() * static_cast<int64_t>(sizeof(S)),
                  "conv3d input");
  const auto kernel = Tables<S>::apply_inputs().best();
  for_each_piece(rows.pieces(), [&](int64_t piece, int64_t) { kernel(rows, piece, applied->as<void>()); });
  call.x = applied->as<void>();
  call.loads_inputs = false;
}

// Runs the call by Winograd where that is less work and the precision allows it.
template <class S>
bool winograd(const Convolution& call, const Weights& weight, const conv3d::WeightStrides& strides) {
  if (conv3d::precision() == conv3d::Precision::highest) return false;
  const auto& table = std::is_same_v<S, float> ? conv3d::winograd_f32 : conv3d::winograd_bf16;
  conv3d::Winograd plan;
  // Statistics are gathered by pieces, which then must not depend on the number of threads.
  constexpr int64_t usual_workers = 16;
  const int64_t workers =
      call.epilogue.gathers() ? usual_workers : worker_count(std::numeric_limits<int64_t>::max());
  if (!plan_winograd(table.preview().second, call, workers, plan)) return false;
  const auto kernel = table.best();
  PackingKey packing = {packing_id(kernel.weights)};
  append_packing(call, strides, packing);
  for (const auto& axis : plan.axes) packing.push_back(axis.m);
  packing.push_back(plan.k_block);
  const PackedBlock u = weight.packed(
      packing, transformed_size(plan) * static_cast<int64_t>(sizeof(float)), "conv3d weights", [&](void* to) {
        for_each_piece(transforming_pieces(plan), [&](int64_t piece, int64_t) {
          transform_weights(kernel, data<S>(weight.tensor()), strides, call, plan, piece,
                            static_cast<float*>(to));
        });
      });
  plan.weights = u->as<float>();
  const Statistics<float> statistics(plan.epilogue, plan.batch, plan.groups * plan.filters,
                                     "conv3d statistics");
  const int64_t pieces = winograd_pieces(plan), scratch_step = winograd_scratch(plan);
  const memory::Scratch scratch(scratch_step * worker_count(pieces), "conv3d scratch");
  for_each_piece(pieces, [&](int64_t piece, int64_t worker) {
    run_winograd_piece(kernel, plan, piece, scratch.as<char>() + worker * scratch_step);
  });
  statistics.merge();
  return true;
}

// Runs one call; `filters` and `channels` are swapped for the gradient of the data.
template <class S>
void convolve(Convolution call, const Weights& weight, const conv3d::WeightStrides& strides) {
  const bool depthwise = is_depthwise(call);
  // An exponential is computed once for each value, not once for each tap that reads it.
  const auto exponential = [](const conv3d::Input& input) {
    return input.activation != conv3d::Activation::none && input.activation != conv3d::Activation::relu &&
           input.activation != conv3d::Activation::prelu;
  };
  std::optional<memory::Scratch> applied;
  if (depthwise || std::any_of(call.inputs.begin(), call.inputs.end(), exponential)) {
    apply_inputs<S>(call, applied);
  }
  if constexpr (!std::is_same_v<S, double>) {
    if (!depthwise && winograd<S>(call, weight, strides)) return;
  }
  const auto kernel = (depthwise ? Tables<S>::depthwise() : Tables<S>::direct()).best();
  if (depthwise) {
    plan_depthwise(kernel, call);
  } else {
    plan(kernel, sizeof(compute_t<S>), call);
  }
  const PackedBlock packed = packed_for_direct<S>(weight, strides, {&call, 1}, "conv3d weights");
  run_pieces<compute_t<S>>(kernel, call);
}

// bfloat16 on a CPU with AMX goes to oneDNN: its tiles do the arithmetic several times faster than float32
// vectors. oneDNN wants the same padding on both sides, and is slow at one channel a group.
bool goes_to_onednn(const Arguments& a, int64_t channels) {
  const bool symmetric = std::all_of(a.axes.begin(), a.axes.end(), [](const AxisArguments& axis) {
    return axis.padding_begin == axis.padding_end;
  });
  return isa::active() == isa::Level::amx && symmetric && !(channels == 1 && a.groups > 1);
}

Ints per_axis(const Arguments& a, int64_t AxisArguments::* member) {
  return {a.axes[0].*member, a.axes[1].*member, a.axes[2].*member};
}

Tensor onednn_forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                      const Arguments& a) {
  using torch::stable::detail::from;
  conv3d::onednn_bf16.best();
  std::array<StableIValue, 9> stack{from(x),
                                    from(weight),
                                    from(bias),
                                    from(per_axis(a, &AxisArguments::stride)),
                                    from(per_axis(a, &AxisArguments::padding_begin)),
                                    from(per_axis(a, &AxisArguments::dilation)),
                                    from(false),
                                    from(Ints{0, 0, 0}),
                                    from(a.groups)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::convolution", "", stack.data(), TORCH_ABI_VERSION));
  return to_layout(torch::stable::detail::to<Tensor>(stack[0]), result_layout(x, weight), "conv3d");
}

// The gradients of input, weight and bias, those that `wanted` asks for.
std::array<Tensor, 3> onednn_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                      const Arguments& a, const std::array<bool, 3>& wanted) {
  using torch::stable::detail::from;
  conv3d::onednn_bf16.best();
  const std::optional<Ints> bias_size = Ints{weight.size(0)};
  std::array<StableIValue, 11> stack{from(grad),
                                     from(x),
                                     from(weight),
                                     from(bias_size),
                                     from(per_axis(a, &AxisArguments::stride)),
                                     from(per_axis(a, &AxisArguments::padding_begin)),
                                     from(per_axis(a, &AxisArguments::dilation)),
                                     from(false),
                                     from(Ints{0, 0, 0}),
                                     from(a.groups),
                                     from(torch::headeronly::HeaderOnlyArrayRef<bool>(wanted.data(), 3))};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::convolution_backward", "", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1]),
          torch::stable::detail::to<Tensor>(stack[2])};
}

template <class S>
Tensor forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Arguments& a,
               const conv3d::Epilogue& epilogue, const conv3d::Inputs* inputs) {
  using A = compute_t<S>;
  const Layout5 layout = result_layout(x, weight);
  const auto output = a.output_size();
  const Tensor dense = inputs == nullptr ? to_layout(x, Layout5::channels_last, "conv3d") : x;
  const Ints size = {x.size(0), weight.size(0), output[0], output[1], output[2]};
  Tensor y = empty_volume<S>(size, written_layout(size, layout), "conv3d");
  if (y.numel() == 0) return layout == Layout5::plain ? to_layout(y, layout, "conv3d") : y;

  Convolution call;
  call.epilogue = epilogue;
  call.x = dense.const_data_ptr();
  if (inputs != nullptr) {
    call.loads_inputs = true;
    call.inputs = *inputs;
  }
  call.y = y.mutable_data_ptr();
  call.batch = x.size(0);
  call.groups = a.groups;
  call.channels = weight.size(1);
  call.filters = weight.size(0) / a.groups;
  for (size_t i = 0; i < 3; ++i) call.axes[i] = forward_axis(a.axes[i]);
  std::vector<A> bias_values;
  if (bias) {
    const S* values = data<S>(*bias);
    for (int64_t k = 0; k < bias->size(0); ++k) bias_values.push_back(to_float(values[k * bias->stride(0)]));
    call.bias = bias_values.data();
  }
  convolve<S>(call, Weights(weight),
              {call.filters * weight.stride(0),
               weight.stride(0),
               weight.stride(1),
               {weight.stride(2), weight.stride(3), weight.stride(4)}});
  return to_layout(y, layout, "conv3d");
}

template <class S>
Tensor data_gradient(const Tensor& grad, const Tensor& weight, const Ints& input_size, const Arguments& a,
                     Layout5 layout) {
  const Tensor dense = to_layout(grad, Layout5::channels_last, "conv3d backward");
  Tensor dx = empty_volume<S>(input_size, written_layout(input_size, layout), "conv3d backward");
  if (dx.numel() == 0) return to_layout(dx, layout, "conv3d backward");

  Convolution call;
  call.x = dense.const_data_ptr();
  call.y = dx.mutable_data_ptr();
  call.batch = input_size[0];
  call.groups = a.groups;
  call.channels = weight.size(0) / a.groups;
  call.filters = weight.size(1);
  const conv3d::WeightStrides strides{call.channels * weight.stride(0),
                                      weight.stride(1),
                                      weight.stride(0),
                                      {weight.stride(2), weight.stride(3), weight.stride(4)}};
  const Weights weights(weight);
  for (const Axis& d : data_gradient_axes(a.axes[0])) {
    for (const Axis& h : data_gradient_axes(a.axes[1])) {
      for (const Axis& w : data_gradient_axes(a.axes[2])) {
        call.axes = {d, h, w};
        convolve<S>(call, weights, strides);
      }
    }
  }
  return to_layout(dx, layout, "conv3d backward");
}

template <class S>
std::tuple<Tensor, Tensor> weight_gradient(const Tensor& grad, const Tensor& x, const Ints& weight_size,
                                           const Arguments& a) {
  const auto& table =
      [] {
        if constexpr (std::is_same_v<S, double>) {
          return std::cref(conv3d::weight_gradient_f64);
        } else {
          return std::cref(conv3d::weight_gradient_f32);
        }
      }()
          .get();
  const Tensor dense_x = to_layout(x, Layout5::channels_last, "conv3d backward");
  const Tensor dense_dy = to_layout(grad, Layout5::channels_last, "conv3d backward");

  conv3d::WeightGradient call;
  call.x = dense_x.const_data_ptr();
  call.dy = dense_dy.const_data_ptr();
  call.batch = x.size(0);
  call.groups = a.groups;
  call.channels = weight_size[1];
  call.filters = weight_size[0] / a.groups;
  for (size_t i = 0; i < 3; ++i) call.axes[i] = forward_axis(a.axes[i]);
  const auto kernel = table.best();
  plan(kernel, sizeof(S), call);

  const int64_t taps = weight_size[2] * weight_size[3] * weight_size[4];
  const int64_t rows = taps * call.channels + 1, range_step = call.groups * rows * call.k_padded;
  const memory::Scratch partial(call.ranges * range_step * static_cast<int64_t>(sizeof(S)),
                                "conv3d backward");
  call.partial = partial.as<S>();
  for_each_piece(call.pieces, [&](int64_t piece, int64_t) { kernel.run(call, piece); });

  Tensor dw = empty_plain<S>(weight_size, "conv3d backward");
  Tensor db = empty_plain<S>({weight_size[0]}, "conv3d backward");
  S* to = mutable_data<S>(dw);
  S* to_bias = mutable_data<S>(db);
  const S* sums = partial.as<S>();
  for_each_piece(weight_size[0], [&](int64_t k, int64_t) {
    const S* column = sums + k / call.filters * rows * call.k_padded + k % call.filters;
    const auto total = [&](int64_t row) {
      S sum = 0;
      for (int64_t range = 0; range < call.ranges; ++range) {
        sum += column[range * range_step + row * call.k_padded];
      }
      return sum;
    };
    for (int64_t c = 0; c < call.channels; ++c) {
      for (int64_t t = 0; t < taps; ++t) {
        to[(k * call.channels + c) * taps + t] = total(t * call.channels + c);
      }
    }
    to_bias[k] = total(taps * call.channels);
  });
  return {dw, db};
}

template <class F>
auto by_dtype(const Tensor& x, const F& f) {
  if (x.scalar_type() == ScalarType::Float) return f(float{});
  if (x.scalar_type() == ScalarType::Double) return f(double{});
  VOLNET_CHECK(x.scalar_type() == ScalarType::BFloat16, "conv3d: float32, float64 or bfloat16 expected");
  return f(bfloat16{});
}

Arguments checked(const Ints& input_size, ScalarType dtype, const Tensor& weight,
                  const std::optional<Tensor>& bias, const Ints& stride, const Ints& padding,
                  const Ints& dilation, int64_t groups) {
  const Arguments a = parse(input_size, sizes_of(weight), stride, padding, dilation, groups);
  VOLNET_CHECK(dtype == weight.scalar_type() &&
                   (!bias || (bias->scalar_type() == dtype && bias->numel() == weight.size(0))),
               "conv3d: weight and bias must have the dtype of the input, and bias one value a filter");
  return a;
}

Tensor conv3d_forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                      const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups) {
  const Arguments a = checked(sizes_of(x), x.scalar_type(), weight, bias, stride, padding, dilation, groups);
  if (x.scalar_type() == ScalarType::BFloat16 && x.numel() > 0 && goes_to_onednn(a, weight.size(1))) {
    return onednn_forward(x, weight, bias, a);
  }
  return by_dtype(x, [&](auto type) { return forward<decltype(type)>(x, weight, bias, a, {}, nullptr); });
}

// y, and its mean and variance where they are asked for. oneDNN has no part in this: it would round bfloat16
// before the epilogue.
std::tuple<Tensor, Tensor, Tensor> conv3d_fused(
    const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
    const Ints& padding, const Ints& dilation, int64_t groups, const std::string& activation,
    double negative_slope, const std::optional<Tensor>& prelu_weight, const std::optional<Tensor>& residual,
    bool statistics, const std::optional<Tensor>& input_scale, const std::optional<Tensor>& input_shift,
    const std::string& input_activation, const std::optional<Tensor>& skip,
    const std::optional<Tensor>& skip_scale, const std::optional<Tensor>& skip_shift,
    const std::string& skip_activation, double input_negative_slope) {
  Ints input_size = sizes_of(x);
  std::vector<InputArguments> inputs = {{x, input_scale, input_shift, input_activation}};
  if (skip) {
    const Ints skip_size = sizes_of(*skip);
    VOLNET_CHECK(input_size.size() == 5 && skip_size.size() == 5 && input_size[0] == skip_size[0] &&
                     std::equal(input_size.begin() + 2, input_size.end(), skip_size.begin() + 2) &&
                     x.scalar_type() == skip->scalar_type(),
                 "conv3d: skip must be like the input, up to its channels; got ", shape_text(skip_size));
    input_size[1] += skip_size[1];
    inputs.push_back({*skip, skip_scale, skip_shift, skip_activation});
  }
  const Arguments a = checked(input_size, x.scalar_type(), weight, bias, stride, padding, dilation, groups);
  const auto output = a.output_size();
  const Ints size = {x.size(0), weight.size(0), output[0], output[1], output[2]};
  const EpilogueArguments arguments{activation, negative_slope, prelu_weight, residual, statistics};
  const bool plain = !skip && !input_scale && !input_shift && input_activation == "none";
  return by_dtype(x, [&](auto type) -> std::tuple<Tensor, Tensor, Tensor> {
    using S = decltype(type);
    const PreparedEpilogue<S> epilogue(arguments, size, "conv3d");
    std::optional<PreparedInputs<S>> prepared;
    if (!plain) prepared.emplace(inputs, input_negative_slope, "conv3d");
    return {forward<S>(x, weight, bias, a, epilogue.epilogue, plain ? nullptr : &prepared->inputs),
            epilogue.mean, epilogue.variance};
  });
}

Tensor conv3d_backward_input(const Tensor& grad, const Tensor& weight, const Ints& input_size,
                             const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                             bool channels_last) {
  const Arguments a = parse(input_size, sizes_of(weight), stride, padding, dilation, groups);
  const Layout5 layout = channels_last ? Layout5::channels_last : Layout5::plain;
  if (grad.scalar_type() == ScalarType::BFloat16 && grad.numel() > 0 && goes_to_onednn(a, weight.size(1))) {
    const Tensor x =
        empty_volume<bfloat16>(input_size, layout, "conv3d backward");  // its values are not read
    return to_layout(onednn_backward(grad, x, weight, a, {true, false, false})[0], layout, "conv3d backward");
  }
  return by_dtype(
      grad, [&](auto type) { return data_gradient<decltype(type)>(grad, weight, input_size, a, layout); });
}

// The gradients of weight and bias; bfloat16 is summed in float32 and comes back as float32.
std::tuple<Tensor, Tensor> conv3d_backward_weight(const Tensor& grad, const Tensor& x,
                                                  const Ints& weight_size, const Ints& stride,
                                                  const Ints& padding, const Ints& dilation, int64_t groups) {
  const Arguments a = parse(sizes_of(x), weight_size, stride, padding, dilation, groups);
  if (x.scalar_type() == ScalarType::BFloat16 && grad.numel() > 0 && goes_to_onednn(a, weight_size[1])) {
    const Tensor weight = empty_plain<bfloat16>(weight_size, "conv3d backward");  // its values are not read
    const auto gradients = onednn_backward(grad, x, weight, a, {false, true, true});
    return {torch::stable::contiguous(torch::stable::to(gradients[1], ScalarType::Float)),
            torch::stable::to(gradients[2], ScalarType::Float)};
  }
  if (x.scalar_type() == ScalarType::BFloat16) {
    return weight_gradient<float>(torch::stable::to(grad, ScalarType::Float),
                                  torch::stable::to(x, ScalarType::Float), weight_size, a);
  }
  if (x.scalar_type() == ScalarType::Double) return weight_gradient<double>(grad, x, weight_size, a);
  return weight_gradient<float>(grad, x, weight_size, a);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) {
  m.def(
      "conv3d(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, "
      "int groups) -> Tensor");
  m.def(
      "conv3d_fused(Tensor input, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, "
      "int groups, str activation, float negative_slope, Tensor? prelu_weight, Tensor? residual, "
      "bool statistics, Tensor? input_scale, Tensor? input_shift, str input_activation, Tensor? skip, "
      "Tensor? skip_scale, Tensor? skip_shift, str skip_activation, float input_negative_slope) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "_conv3d_backward_input(Tensor grad, Tensor weight, int[] input_size, int[] stride, int[] padding, "
      "int[] dilation, int groups, bool channels_last) -> Tensor");
  m.def(
      "_conv3d_backward_weight(Tensor grad, Tensor input, int[] weight_size, int[] stride, int[] padding, "
      "int[] dilation, int groups) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) {
  m.impl("conv3d", TORCH_BOX(&conv3d_forward));
  m.impl("conv3d_fused", TORCH_BOX(&conv3d_fused));
  m.impl("_conv3d_backward_input", TORCH_BOX(&conv3d_backward_input));
  m.impl("_conv3d_backward_weight", TORCH_BOX(&conv3d_backward_weight));
}

}  // namespace volnet

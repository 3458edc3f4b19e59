// torch.ops.volnet.conv3d and its gradients. Padding is [d begin, d end, h begin, h end, w begin, w end].
#include <algorithm>
#include <array>
#include <chrono>
#include <limits>
#include <type_traits>

#include "isa/isa.h"
#include "kernels/conv3d/amx_gradient.h"
#include "kernels/conv3d/amx_winograd.h"
#include "kernels/conv3d/conv3d.h"
#include "kernels/conv3d/plan.h"
#include "kernels/conv3d/plan_book.h"
#include "kernels/conv3d/planner.h"
#include "kernels/conv3d/winograd.h"
#include "kernels/conv3d/winograd_gradient.h"
#include "ops/conv3d.h"
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

template <class S>
void run_direct(Convolution call, const Weights& weight, const conv3d::WeightStrides& strides) {
  const bool depthwise = is_depthwise(call);
  const auto kernel = (depthwise ? Tables<S>::depthwise() : Tables<S>::direct()).best();
  if (depthwise) {
    plan_depthwise(kernel, call);
  } else {
    plan(kernel, sizeof(compute_t<S>), call);
  }
  const PackedBlock packed = packed_for_direct<S>(weight, strides, {&call, 1}, "conv3d weights");
  run_pieces<compute_t<S>>(kernel, call);
}

template <class S>
void run_winograd(const std::array<int64_t, 3>& tile, const Convolution& call, const Weights& weight,
                  const conv3d::WeightStrides& strides) {
  const auto kernel = (std::is_same_v<S, float> ? conv3d::winograd_f32 : conv3d::winograd_bf16).best();
  conv3d::Winograd plan = plan_winograd(kernel, call, tile, planned_workers(call));
  PackingKey packing = {packing_id(kernel.weights), plan.k_block, tile[0], tile[1], tile[2]};
  append_packing(call, strides, packing);
  const PackedBlock u = weight.packed(
      packing, transformed_size(plan) * static_cast<int64_t>(sizeof(float)), "conv3d weights", [&](void* to) {
        const int64_t pieces = transforming_pieces(plan), scratch_step = transforming_scratch(plan);
        const memory::Scratch scratch(scratch_step * worker_count(pieces), "conv3d weights");
        for_each_piece(pieces, [&](int64_t piece, int64_t worker) {
          transform_weights(kernel, data<S>(weight.tensor()), strides, call, plan, piece,
                            static_cast<float*>(to),
                            reinterpret_cast<float*>(scratch.as<char>() + worker * scratch_step));
        });
      });
  plan.weights = u->as<float>();
  const Statistics<float> statistics(plan.epilogue, plan.batch, plan.groups * plan.filters,
                                     "conv3d statistics");
  std::optional<memory::Scratch> shared;
  try {
    shared.emplace(winograd_shared(plan), "conv3d scratch");
  } catch (const memory::OutOfMemory&) {
    plan.staged = false;
  }
  for (int64_t stage = 0; stage < winograd_stages(plan); ++stage) {
    const int64_t pieces = winograd_pieces(plan, stage), scratch_step = winograd_scratch(plan);
    const memory::Scratch scratch(scratch_step * worker_count(pieces), "conv3d scratch");
    for_each_piece(pieces, [&](int64_t piece, int64_t worker) {
      run_winograd_piece(kernel, plan, stage, piece, shared ? shared->as<void>() : nullptr,
                         scratch.as<char>() + worker * scratch_step);
    });
  }
  statistics.merge();
}

void run_amx_winograd(const Convolution& call, const conv3d::Conditions& conditions, const Weights& weight,
                      const conv3d::WeightStrides& strides) {
  const auto kernel = conv3d::amx_winograd_f32.best();
  conv3d::AmxWinograd plan;
  plan_amx_winograd(call, conditions.workers, plan);
  PackingKey packing = {packing_id(kernel.pack)};
  append_packing(call, strides, packing);
  const PackedBlock packed =
      weight.packed(packing, amx_winograd_packed_size(plan), "conv3d weights", [&](void* to) {
        for_each_piece(amx_winograd_packing_pieces(plan), [&](int64_t piece, int64_t) {
          kernel.pack(plan, data<float>(weight.tensor()), strides, piece, to);
        });
      });
  plan.call.weights = packed->as<void>();
  const Statistics<float> statistics(plan.call.epilogue, call.batch, call.groups * call.filters,
                                     "conv3d statistics");
  const memory::Scratch scratch(on_huge_pages(plan.scratch * worker_count(plan.pieces)), "conv3d scratch");
  for_each_piece(plan.pieces, [&](int64_t piece, int64_t worker) {
    kernel.run(plan, piece, scratch.as<char>() + worker * plan.scratch);
  });
  statistics.merge();
}

template <class S>
void run_plan(const conv3d::Plan& plan, const Convolution& call, const conv3d::Conditions& conditions,
              const Weights& weight, const conv3d::WeightStrides& strides) {
  if constexpr (!std::is_same_v<S, double>) {
    if (plan.algorithm == conv3d::Algorithm::amx) {
      run_amx<S>({&call, 1}, conditions, weight, strides);
      return;
    }
  }
  if (conv3d::tracing()) conv3d::trace(plan.kernel);
  if constexpr (std::is_same_v<S, float>) {
    if (plan.algorithm == conv3d::Algorithm::amx_winograd) {
      run_amx_winograd(call, conditions, weight, strides);
      return;
    }
  }
  if constexpr (!std::is_same_v<S, double>) {
    if (plan.algorithm == conv3d::Algorithm::winograd) {
      run_winograd<S>(plan.tile, call, weight, strides);
      return;
    }
  }
  run_direct<S>(call, weight, strides);
}

// The fastest of the few best candidates, timed on the call itself.
template <class S>
conv3d::Plan measure(const Convolution& call, const conv3d::Conditions& conditions, const Weights& weight,
                     const conv3d::WeightStrides& strides) {
  constexpr size_t tried = 4;
  constexpr int repetitions = 3;
  std::vector<conv3d::Plan> plans = candidates(call, conditions);
  plans.resize(std::min(plans.size(), tried));
  std::vector<double> seconds(plans.size(), std::numeric_limits<double>::infinity());
  for (int i = 0; i < repetitions && plans.size() > 1; ++i) {
    for (size_t p = 0; p < plans.size(); ++p) {
      // The first run packs the weights, and fills the caches alike for all.
      run_plan<S>(plans[p], call, conditions, weight, strides);
      const auto start = std::chrono::steady_clock::now();
      run_plan<S>(plans[p], call, conditions, weight, strides);
      const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
      seconds[p] = std::min(seconds[p], taken.count());
    }
  }
  return plans[static_cast<size_t>(std::min_element(seconds.begin(), seconds.end()) - seconds.begin())];
}

// Whether a call by this plan may have plain volumes. Winograd's kernels do not take them: to transpose twice
// by itself is faster there than to gather each voxel's channels for tiles that overlap.
bool takes_plain(const conv3d::Plan& plan, const Convolution& call) {
  switch (plan.algorithm) {
    case conv3d::Algorithm::amx:
      return amx_serves_plain(call);
    case conv3d::Algorithm::direct:
      return direct_serves_plain(call);
    default:
      return false;
  }
}

// Runs one call; `filters` and `channels` are swapped for the gradient of the data. Plain volumes go by the
// plan that takes them, whatever another thread has measured since.
template <class S>
void convolve(Convolution call, const conv3d::Plan& plan, const conv3d::Conditions& conditions,
              const Weights& weight, const conv3d::WeightStrides& strides) {
  if (call.plain_x || call.plain_y) {
    run_plan<S>(plan, call, conditions, weight, strides);
    return;
  }
  // An exponential is computed once for each value, not once for each tap that reads it.
  const auto exponential = [](const conv3d::Input& input) {
    return input.activation != Activation::none && input.activation != Activation::relu &&
           input.activation != Activation::prelu;
  };
  std::optional<memory::Scratch> applied;
  if (is_depthwise(call) || std::any_of(call.inputs.begin(), call.inputs.end(), exponential)) {
    apply_inputs<S>(call, applied);
  }
  if (conv3d::measuring()) {
    const std::string key = plan_key(call, conditions);
    if (conv3d::measured_choice(key).empty()) {
      conv3d::remember_choices({{key, measure<S>(call, conditions, weight, strides).name}});
    }
  }
  run_plan<S>(*plan_for(call, conditions), call, conditions, weight, strides);
}

template <class S>
Tensor forward(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Arguments& a,
               const conv3d::Epilogue& epilogue, const conv3d::Inputs* inputs) {
  using A = compute_t<S>;
  const Layout5 layout = result_layout(x, weight);
  const auto output = a.output_size();
  const Ints size = {x.size(0), weight.size(0), output[0], output[1], output[2]};
  if (numel(size) == 0) return empty_volume<S>(size, layout, "conv3d");
  Convolution call;
  call.epilogue = epilogue;
  if (inputs != nullptr) {
    call.loads_inputs = true;
    call.inputs = *inputs;
  }
  call.batch = x.size(0);
  call.groups = a.groups;
  call.channels = weight.size(1);
  call.filters = weight.size(0) / a.groups;
  for (size_t i = 0; i < 3; ++i) call.axes[i] = forward_axis(a.axes[i]);
  const conv3d::Conditions conditions = conditions_of<S>(call);
  const auto plan = plan_for(call, conditions);
  const bool plain = takes_plain(*plan, call);
  call.plain_x = plain && layout_of(x) == Layout5::plain;
  call.plain_y = plain && layout == Layout5::plain;
  const Tensor dense =
      inputs == nullptr ? to_layout(x, call.plain_x ? Layout5::plain : Layout5::channels_last, "conv3d") : x;
  Tensor y = empty_volume<S>(size, call.plain_y ? layout : written_layout(size, layout), "conv3d");

  call.x = dense.const_data_ptr();
  call.y = y.mutable_data_ptr();
  std::vector<A> bias_values;
  if (bias) {
    const S* values = data<S>(*bias);
    for (int64_t k = 0; k < bias->size(0); ++k) bias_values.push_back(to_float(values[k * bias->stride(0)]));
    call.bias = bias_values.data();
  }
  convolve<S>(call, *plan, conditions, Weights(weight),
              {call.filters * weight.stride(0),
               weight.stride(0),
               weight.stride(1),
               {weight.stride(2), weight.stride(3), weight.stride(4)}});
  return to_layout(y, layout, "conv3d");
}

template <class S>
Tensor data_gradient(const Tensor& grad, const Tensor& weight, const Ints& input_size, const Arguments& a,
                     Layout5 layout) {
  if (numel(input_size) == 0) return empty_volume<S>(input_size, layout, "conv3d backward");
  Convolution call;
  call.batch = input_size[0];
  call.groups = a.groups;
  call.channels = weight.size(0) / a.groups;
  call.filters = weight.size(1);
  std::vector<Convolution> calls = residues(call, a.axes);
  const conv3d::Conditions conditions = conditions_of<S>(calls[0]);
  const bool joined = calls.size() > 1 && conditions.element != conv3d::Element::f64 &&
                      amx_serves(calls[0], amx_parts(conditions));
  std::vector<std::shared_ptr<const conv3d::Plan>> plans;
  bool plain = !joined || amx_serves_plain(calls[0]);
  for (size_t i = 0; i < calls.size() && !joined; ++i) {
    plans.push_back(plan_for(calls[i], conditions));
    plain = plain && takes_plain(*plans[i], calls[i]);
  }
  const bool plain_x = plain && layout_of(grad) == Layout5::plain,
             plain_y = plain && layout == Layout5::plain;
  const Tensor dense = to_layout(grad, plain_x ? Layout5::plain : Layout5::channels_last, "conv3d backward");
  Tensor dx =
      empty_volume<S>(input_size, plain_y ? layout : written_layout(input_size, layout), "conv3d backward");
  for (Convolution& residue : calls) {
    residue.x = dense.const_data_ptr();
    residue.y = dx.mutable_data_ptr();
    residue.plain_x = plain_x;
    residue.plain_y = plain_y;
  }
  const conv3d::WeightStrides strides{call.channels * weight.stride(0),
                                      weight.stride(1),
                                      weight.stride(0),
                                      {weight.stride(2), weight.stride(3), weight.stride(4)}};
  const Weights weights(weight);
  if constexpr (!std::is_same_v<S, double>) {
    if (joined) {
      run_amx<S>(calls, conditions, weights, strides);
      return to_layout(dx, layout, "conv3d backward");
    }
  }
  for (size_t i = 0; i < calls.size(); ++i) convolve<S>(calls[i], *plans[i], conditions, weights, strides);
  return to_layout(dx, layout, "conv3d backward");
}

// The gradients of weight and bias by Winograd, where that is less work and the precision allows it.
template <class S>
std::optional<std::tuple<Tensor, Tensor>> winograd_weight_gradient(const Tensor& grad, const Tensor& x,
                                                                   const Ints& weight_size,
                                                                   const Arguments& a) {
  if (conv3d::precision() == conv3d::Precision::highest) return {};
  const auto& table =
      std::is_same_v<S, float> ? conv3d::winograd_gradient_f32 : conv3d::winograd_gradient_bf16;
  Convolution forward;
  forward.batch = x.size(0);
  forward.groups = a.groups;
  forward.channels = weight_size[1];
  forward.filters = weight_size[0] / a.groups;
  for (size_t i = 0; i < 3; ++i) forward.axes[i] = forward_axis(a.axes[i]);
  conv3d::WinogradGradient call;
  if (!plan_winograd_gradient(table.preview().second, forward, call)) return {};
  // With few tiles the transforms of the weights weigh most, and AMX is faster.
  constexpr int64_t few = 64;
  if (amx_parts(conditions_of<S>(forward)) > 0 && call.forward.tiles() < few) return {};
  const auto kernel = table.best();

  const Tensor dense_x = to_layout(x, Layout5::channels_last, "conv3d backward");
  const Tensor dense_dy = to_layout(grad, Layout5::channels_last, "conv3d backward");
  call.forward.x = dense_x.const_data_ptr();
  call.dy = dense_dy.const_data_ptr();
  constexpr auto float_size = static_cast<int64_t>(sizeof(float));
  const memory::Scratch partial(partial_size(call) * float_size, "conv3d backward");
  const memory::Scratch partial_bias(partial_bias_size(call) * float_size, "conv3d backward");
  call.partial = partial.as<float>();
  call.partial_bias = partial_bias.as<float>();
  const int64_t scratch_step = (winograd_gradient_scratch(call) + 63) / 64 * 64;
  {
    const memory::Scratch scratch(scratch_step * worker_count(call.pieces()), "conv3d backward");
    for_each_piece(call.pieces(), [&](int64_t piece, int64_t worker) {
      kernel.run(call, piece, scratch.as<char>() + worker * scratch_step);
    });
  }

  Tensor dw = empty_plain<float>(weight_size, "conv3d backward");
  Tensor db = empty_plain<float>({weight_size[0]}, "conv3d backward");
  auto* to = mutable_data<float>(dw);
  for_each_piece(a.groups * forward.channels, [&](int64_t i, int64_t) {
    kernel.weights(call, i / forward.channels, i % forward.channels, to);
  });
  auto* to_bias = mutable_data<float>(db);
  for (int64_t k = 0; k < weight_size[0]; ++k) {
    float sum = 0;
    for (int64_t range = 0; range < call.ranges; ++range) {
      sum +=
          call.partial_bias[(range * a.groups + k / forward.filters) * call.k_padded() + k % forward.filters];
    }
    to_bias[k] = sum;
  }
  return std::tuple{dw, db};
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
  if (call.channels == 1 && call.filters == 1) {
    call.depthwise = true;
    std::swap(call.groups, call.filters);
  }
  const auto kernel = table.best();
  plan(kernel, sizeof(S), call);

  const int64_t taps = weight_size[2] * weight_size[3] * weight_size[4];
  const int64_t rows = taps * call.channels + 1, range_step = call.groups * rows * call.k_padded;
  const memory::Scratch partial(call.ranges * range_step * static_cast<int64_t>(sizeof(S)),
                                "conv3d backward");
  call.partial = partial.as<S>();
  const int64_t scratch_step = (call.scratch + 63) / 64 * 64;
  const memory::Scratch scratch(scratch_step * worker_count(call.pieces), "conv3d backward");
  for_each_piece(call.pieces, [&](int64_t piece, int64_t worker) {
    kernel.run(call, piece, scratch.as<char>() + worker * scratch_step);
  });

  Tensor dw = empty_plain<S>(weight_size, "conv3d backward");
  Tensor db = empty_plain<S>({weight_size[0]}, "conv3d backward");
  // Whole lines of the partial sums are added up, one line of filters for all taps of a channel.
  constexpr int64_t line = 16;
  const int64_t lines = (call.filters + line - 1) / line;
  const int64_t channels = std::max<int64_t>(call.channels, 1);  // the bias has a gradient without any
  for_each_piece(call.groups * lines * channels, [&](int64_t piece, int64_t) {
    const int64_t c = piece % channels, k = piece / channels % lines * line;
    const int64_t group = piece / (channels * lines), count = std::min(line, call.filters - k);
    const S* sums = partial.as<S>() + group * rows * call.k_padded + k;
    const auto add_up = [&](int64_t row, S* to, int64_t step) {
      std::array<S, line> total{};
      for (int64_t range = 0; range < call.ranges; ++range) {
        const S* from = sums + range * range_step + row * call.k_padded;
        for (int64_t i = 0; i < count; ++i) total[static_cast<size_t>(i)] += from[i];
      }
      for (int64_t i = 0; i < count; ++i) to[i * step] = total[static_cast<size_t>(i)];
    };
    const int64_t filter = group * call.filters + k;
    for (int64_t t = 0; t < taps && c < call.channels; ++t) {
      add_up(t * call.channels + c, mutable_data<S>(dw) + (filter * call.channels + c) * taps + t,
             call.channels * taps);
    }
    if (c == 0) add_up(taps * call.channels, mutable_data<S>(db) + filter, 1);
  });
  return {dw, db};
}

// The same on AMX, where the machine has it and the precision allows bfloat16 parts.
template <class S>
std::optional<std::tuple<Tensor, Tensor>> amx_weight_gradient(const Tensor& grad, const Tensor& x,
                                                              const Ints& weight_size, const Arguments& a) {
  const int64_t parts = amx_parts(conditions_of<S>({}));
  if (parts == 0) return std::nullopt;
  conv3d::AmxGradient plan;
  plan.batch = x.size(0);
  plan.groups = a.groups;
  plan.channels = weight_size[1];
  plan.filters = weight_size[0] / a.groups;
  for (size_t i = 0; i < 3; ++i) plan.axes[i] = forward_axis(a.axes[i]);
  if (!plan_amx_gradient(parts, plan)) return std::nullopt;
  const auto kernel =
      (std::is_same_v<S, float> ? conv3d::amx_gradient_f32 : conv3d::amx_gradient_bf16).best();

  const Tensor dense_x = to_layout(x, Layout5::channels_last, "conv3d backward");
  const Tensor dense_dy = to_layout(grad, Layout5::channels_last, "conv3d backward");
  plan.x = dense_x.const_data_ptr();
  plan.dy = dense_dy.const_data_ptr();
  const int64_t sums = amx_gradient_partial(plan), bias_sums = amx_gradient_partial_bias(plan);
  const memory::Scratch partial((sums + bias_sums) * static_cast<int64_t>(sizeof(float)), "conv3d backward");
  plan.partial = partial.as<float>();
  plan.partial_bias = plan.partial + sums;
  const int64_t scratch_step = (amx_gradient_scratch(plan) + 63) / 64 * 64;
  const memory::Scratch scratch(on_huge_pages(scratch_step * worker_count(plan.pieces)), "conv3d backward");
  for_each_piece(plan.pieces, [&](int64_t piece, int64_t worker) {
    kernel.run(plan, piece, scratch.as<char>() + worker * scratch_step);
  });

  Tensor dw = empty_plain<float>(weight_size, "conv3d backward");
  Tensor db = empty_plain<float>({weight_size[0]}, "conv3d backward");
  for_each_piece(plan.groups * plan.channel_blocks * plan.filter_blocks, [&](int64_t piece, int64_t) {
    amx_gradient_sum(plan, piece, mutable_data<float>(dw), mutable_data<float>(db));
  });
  return std::tuple{dw, db};
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
  return by_dtype(x, [&](auto type) { return forward<decltype(type)>(x, weight, bias, a, {}, nullptr); });
}

// y, and its mean and variance where they are asked for.
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
  return by_dtype(
      grad, [&](auto type) { return data_gradient<decltype(type)>(grad, weight, input_size, a, layout); });
}

// The gradients of weight and bias; bfloat16 is summed in float32 and comes back as float32.
std::tuple<Tensor, Tensor> conv3d_backward_weight(const Tensor& grad, const Tensor& x,
                                                  const Ints& weight_size, const Ints& stride,
                                                  const Ints& padding, const Ints& dilation, int64_t groups) {
  const Arguments a = parse(sizes_of(x), weight_size, stride, padding, dilation, groups);
  if (x.scalar_type() == ScalarType::BFloat16) {
    if (auto gradients = amx_weight_gradient<bfloat16>(grad, x, weight_size, a)) return *gradients;
    if (auto gradients = winograd_weight_gradient<bfloat16>(grad, x, weight_size, a)) return *gradients;
    return weight_gradient<float>(torch::stable::to(grad, ScalarType::Float),
                                  torch::stable::to(x, ScalarType::Float), weight_size, a);
  }
  if (x.scalar_type() == ScalarType::Double) return weight_gradient<double>(grad, x, weight_size, a);
  if (auto gradients = winograd_weight_gradient<float>(grad, x, weight_size, a)) return *gradients;
  if (auto gradients = amx_weight_gradient<float>(grad, x, weight_size, a)) return *gradients;
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

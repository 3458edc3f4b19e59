// What conv3d and conv_transpose3d share: the direct kernels of a dtype, their weights, a run on AMX, and the
// layout of a result.
#pragma once

#include <algorithm>
#include <limits>
#include <span>
#include <type_traits>
#include <vector>

#include "isa/isa.h"
#include "kernels/conv3d/amx.h"
#include "kernels/conv3d/conv3d.h"
#include "kernels/conv3d/plan.h"
#include "kernels/conv3d/plan_book.h"
#include "kernels/conv3d/planner.h"
#include "ops/epilogue.h"
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

// Blocks of a megabyte and more lie on huge pages: tiles read more small pages than the processor can recall.
inline int64_t on_huge_pages(int64_t bytes) { return std::max(bytes, int64_t{1} << 20); }

// Statistics are gathered by pieces, which then must not depend on the number of threads.
inline int64_t planned_workers(const conv3d::Convolution& call) {
  constexpr int64_t usual_workers = 16;
  return call.epilogue.gathers() ? usual_workers : worker_count(std::numeric_limits<int64_t>::max());
}

// What the choice of a kernel depends on. Taken once for a call: another thread may set the precision while
// it runs.
template <class S>
conv3d::Conditions conditions_of(const conv3d::Convolution& call) {
  constexpr auto element = std::is_same_v<S, float>    ? conv3d::Element::f32
                           : std::is_same_v<S, double> ? conv3d::Element::f64
                                                       : conv3d::Element::bf16;
  return {element, conv3d::precision(), planned_workers(call)};
}

// Runs the calls on AMX, which share input, result and weights; their pieces take turns, so that what one has
// read the next finds in the cache.
template <class S>
void run_amx(std::span<const conv3d::Convolution> calls, const conv3d::Conditions& conditions,
             const Weights& weight, const conv3d::WeightStrides& strides) {
  const int64_t parts = amx_parts(conditions);
  const auto& table = std::is_same_v<S, float> ? conv3d::amx_f32 : conv3d::amx_bf16;
  const auto kernel = table.best();
  if (conv3d::tracing()) conv3d::trace(table.preview().first);
  std::vector<conv3d::Amx> plans(calls.size());
  PackingKey packing = {packing_id(kernel.pack), parts};
  std::vector<int64_t> begin = {0};  // bytes
  int64_t pieces = 0, scratch_step = 0;
  for (size_t i = 0; i < calls.size(); ++i) {
    conv3d::Amx& plan = plans[i];
    plan_amx(calls[i], sizeof(S), parts, conditions.workers, plan);
    append_packing(calls[i], strides, packing);
    for (const conv3d::AmxWindow& window : plan.windows) {
      packing.insert(packing.end(), window.taps.begin(), window.taps.end());
    }
    begin.push_back(begin.back() + amx_packed_size(plan));
    pieces = std::max(pieces, plan.pieces);
    scratch_step = std::max(scratch_step, (amx_scratch(plan) + 63) / 64 * 64);
  }
  const PackedBlock packed = weight.packed(packing, begin.back(), "conv3d weights", [&](void* to) {
    for (size_t i = 0; i < calls.size(); ++i) {
      for_each_piece(amx_packing_pieces(plans[i]), [&](int64_t piece, int64_t) {
        kernel.pack(plans[i], data<S>(weight.tensor()), strides, piece, static_cast<char*>(to) + begin[i]);
      });
    }
  });
  for (size_t i = 0; i < calls.size(); ++i) plans[i].call.weights = packed->template as<char>() + begin[i];
  const Statistics<float> statistics(plans[0].call.epilogue, calls[0].batch,
                                     calls[0].groups * calls[0].filters, "conv3d statistics");
  const auto count = static_cast<int64_t>(calls.size());
  const memory::Scratch scratch(on_huge_pages(scratch_step * worker_count(count * pieces)), "conv3d scratch");
  for_each_piece(count * pieces, [&](int64_t piece, int64_t worker) {
    const conv3d::Amx& plan = plans[static_cast<size_t>(piece % count)];
    if (piece / count < plan.pieces) {
      kernel.run(plan, piece / count, scratch.as<char>() + worker * scratch_step);
    }
  });
  statistics.merge();
}

// One call for each residue of the stride on each axis: the gradient of the data, or a transposed
// convolution.
inline std::vector<conv3d::Convolution> residues(conv3d::Convolution call,
                                                 const std::array<conv3d::AxisArguments, 3>& axes) {
  std::vector<conv3d::Convolution> calls;
  for (const conv3d::Axis& d : data_gradient_axes(axes[0])) {
    for (const conv3d::Axis& h : data_gradient_axes(axes[1])) {
      for (const conv3d::Axis& w : data_gradient_axes(axes[2])) {
        call.axes = {d, h, w};
        calls.push_back(call);
      }
    }
  }
  return calls;
}

// As torch: channels_last where the input or the weight says so. A volume of one channel does not say, but
// the weights of a model that was moved to channels_last do.
inline Layout5 result_layout(const Tensor& x, const Tensor& weight) {
  const bool last = layout_of(x) == Layout5::channels_last || layout_of(weight) == Layout5::channels_last;
  return last ? Layout5::channels_last : Layout5::plain;
}

}  // namespace volnet

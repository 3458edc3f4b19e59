// pybind11 module volnet._C: instruction sets, memory, plans. Tensors go through torch.ops.volnet instead.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "isa/dispatch.h"
#include "isa/isa.h"
#include "kernels/conv3d/plan.h"
#include "kernels/conv3d/plan_book.h"
#include "kernels/conv3d/planner.h"
#include "kernels/conv3d/precision.h"
#include "memory/pool.h"
#include "memory/system.h"
#include "ops/packed_weights.h"

namespace py = pybind11;
using namespace volnet;

PYBIND11_MODULE(_C, m) {
  m.def("isa_levels",
        [] { return std::vector<std::string>(isa::level_names.begin(), isa::level_names.end()); });
  m.def("isa_detected", [] { return isa::name(isa::detected()); });
  m.def("isa_active", [] { return isa::name(isa::active()); });
  m.def("isa_set_cap", [](const std::string& cap) { return isa::name(isa::set_cap(isa::parse(cap))); });
  m.def("cpu_brand", &isa::cpu_brand);
  m.def("compiled_torch_abi", [] { return VOLNET_TORCH_ABI; });

  // [(name, ISA level, calls so far)]
  m.def("kernels", [] {
    std::vector<std::tuple<std::string, std::string, int64_t>> rows;
    for (const auto* kernel : isa::registered_kernels()) {
      rows.emplace_back(kernel->name, isa::name(kernel->level),
                        kernel->calls.load(std::memory_order_relaxed));
    }
    return rows;
  });

  // The candidates for a forward conv3d, the one that would run first; padding is [begin, end] of each axis.
  m.def("conv3d_plans", [](const std::array<int64_t, 5>& input, const std::array<int64_t, 5>& weight,
                           const std::array<int64_t, 3>& stride, const std::array<int64_t, 6>& padding,
                           const std::array<int64_t, 3>& dilation, int64_t groups, const std::string& dtype,
                           int64_t threads) {
    conv3d::Convolution call;
    call.batch = input[0];
    call.groups = groups;
    call.channels = weight[1];
    call.filters = weight[0] / groups;
    for (size_t i = 0; i < 3; ++i) {
      call.axes[i] = conv3d::forward_axis(
          {input[2 + i], weight[2 + i], stride[i], padding[2 * i], padding[2 * i + 1], dilation[i]});
    }
    const conv3d::Conditions conditions{dtype == "float32"   ? conv3d::Element::f32
                                        : dtype == "float64" ? conv3d::Element::f64
                                                             : conv3d::Element::bf16,
                                        conv3d::precision(), threads};
    const std::string chosen = plan_for(call, conditions)->name, key = plan_key(call, conditions);
    py::list rows;
    for (const conv3d::Plan& plan : candidates(call, conditions)) {
      py::dict d;
      d["key"] = key;  // of the plan book, which calls the plan by its name
      d["name"] = plan.name;
      d["kernel"] = plan.kernel;
      d["cost"] = plan.cost;
      d["pieces"] = plan.pieces;
      d["scratch_bytes_a_worker"] = plan.scratch;
      d["packed_weight_bytes"] = plan.packed_bytes;
      rows.insert(plan.name == chosen ? 0 : rows.size(), d);
    }
    return rows;
  });

  m.def("plans_measure", &conv3d::set_measuring);
  m.def("plans_measuring", &conv3d::measuring);
  m.def("plans_measured", &conv3d::measured_choices);
  m.def("plans_remember", &conv3d::remember_choices);
  m.def("plans_forget", &conv3d::forget_choices);
  m.def("plans_trace", &conv3d::set_tracing);
  m.def("plans_take_trace", &conv3d::take_trace);

  m.def("precision", [] { return static_cast<int>(conv3d::precision()); });
  m.def("thread_precision", [] {
    const auto level = conv3d::thread_precision();
    return level ? std::optional(static_cast<int>(*level)) : std::nullopt;
  });
  m.def("set_thread_precision", [](std::optional<int> level) {
    conv3d::set_thread_precision(level ? std::optional(static_cast<conv3d::Precision>(*level))
                                       : std::nullopt);
  });
  m.def("set_precision", [](int level) { conv3d::set_precision(static_cast<conv3d::Precision>(level)); });

  m.def("memory_stats", [] {
    const memory::Stats s = memory::stats();
    py::dict d;
    d["in_use"] = s.in_use;
    d["cached"] = s.cached;
    d["peak"] = s.peak;
    d["limit"] = s.limit;
    d["allocations"] = s.allocations;
    d["from_system"] = s.from_system;
    py::dict operators;
    for (const memory::Use& use : memory::uses()) {
      py::dict row;
      row["in_use"] = use.in_use;
      row["peak"] = use.peak;
      row["allocations"] = use.allocations;
      operators[py::str(use.op)] = row;
    }
    d["operators"] = operators;
    const PackedWeightsStats weights = packed_weights_stats();
    d["packed_weights"] = weights.bytes;
    d["packed_weights_reused"] = weights.reused;
    return d;
  });
  m.def("memory_trim", &memory::trim);
  m.def("memory_reset_peak", &memory::reset_peak);
  m.def("memory_retain", &memory::retain);
  m.def("memory_available", &memory::available_bytes);
  m.def("memory_set_limit", &memory::set_limit);
  m.def("memory_set_soft_limit", &memory::set_soft_limit);
  m.def("memory_set_packed_weights_limit", &set_packed_weights_limit);
}

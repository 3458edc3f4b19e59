// pybind11 module volnet._C: instruction sets, memory, plans. Tensors go through torch.ops.volnet instead.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "isa/dispatch.h"
#include "isa/isa.h"
#include "kernels/conv3d/planner.h"
#include "kernels/conv3d/winograd.h"
#include "memory/pool.h"
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

  // The plan of the direct float32 conv3d kernel; padding is [begin, end] of each axis.
  m.def("conv3d_plan", [](const std::array<int64_t, 5>& input, const std::array<int64_t, 5>& weight,
                          const std::array<int64_t, 3>& stride, const std::array<int64_t, 6>& padding,
                          const std::array<int64_t, 3>& dilation, int64_t groups) {
    std::array<conv3d::AxisArguments, 3> axes;
    for (size_t i = 0; i < 3; ++i) {
      axes[i] = {input[2 + i], weight[2 + i], stride[i], padding[2 * i], padding[2 * i + 1], dilation[i]};
    }
    const auto [kernel, call] =
        conv3d::plan_forward_f32(axes, input[0], groups, weight[1], weight[0] / groups);
    py::dict d;
    d["kernel"] = kernel;
    d["pieces"] = call.pieces;
    d["rows_a_piece"] = call.rows;
    d["k_block"] = call.k_block;
    d["scratch_bytes_a_worker"] = call.scratch;
    return d;
  });

  m.def("precision", [] { return static_cast<int>(conv3d::precision()); });
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
    const PackedWeightsStats weights = packed_weights_stats();
    d["packed_weights"] = weights.bytes;
    d["packed_weights_reused"] = weights.reused;
    return d;
  });
  m.def("memory_trim", &memory::trim);
  m.def("memory_set_limit", &memory::set_limit);
  m.def("memory_set_packed_weights_limit", &set_packed_weights_limit);
}

#include "kernels/conv3d/plan.h"

#include <pthread.h>

#include <algorithm>
#include <mutex>
#include <unordered_map>

#include "kernels/conv3d/amx.h"
#include "kernels/conv3d/amx_winograd.h"
#include "kernels/conv3d/plan_book.h"
#include "kernels/conv3d/planner.h"
#include "kernels/conv3d/winograd.h"
#include "memory/key_hash.h"

namespace volnet::conv3d {
namespace {

// The costs are compared for this many workers, whatever the machine has.
constexpr int64_t usual_workers = 16;

int64_t element_size(Element element) { return element == Element::f64 ? 8 : 4; }  // of the arithmetic

const isa::KernelTable<DirectKernel>& direct_table(Element element, bool depthwise) {
  switch (element) {
    case Element::f64:
      return depthwise ? depthwise_f64 : direct_f64;
    case Element::bf16:
      return depthwise ? depthwise_bf16 : direct_bf16;
    default:
      return depthwise ? depthwise_f32 : direct_f32;
  }
}

Plan plan_direct(const Convolution& call, const Conditions& conditions) {
  const bool depthwise = is_depthwise(call);
  const auto [kernel, run] = direct_table(conditions.element, depthwise).preview();
  const int64_t size = element_size(conditions.element);
  Plan result;
  result.algorithm = depthwise ? Algorithm::depthwise : Algorithm::direct;
  result.name = depthwise ? "depthwise" : "direct";
  result.kernel = kernel;
  Convolution planned = call;
  if (depthwise) {
    plan_depthwise(run, planned);
  } else {
    plan(run, size, planned);
  }
  result.cost = direct_cost(planned);
  result.pieces = planned.pieces;
  result.scratch = planned.scratch;
  result.packed_bytes = (depthwise ? packed_depthwise_size(planned) : packed_size(planned)) * size;
  return result;
}

Plan plan_tile(const Convolution& call, const Conditions& conditions, const std::array<int64_t, 3>& tile) {
  const auto& table = conditions.element == Element::f32 ? winograd_f32 : winograd_bf16;
  const auto [kernel, run] = table.preview();
  Plan result;
  result.algorithm = Algorithm::winograd;
  result.name = "wino";
  for (const int64_t m : tile) result.name += std::to_string(m);
  result.kernel = kernel;
  result.kernel.replace(kernel.find("winograd"), 8, result.name);
  result.tile = tile;
  result.cost = winograd_cost(plan_winograd(run, call, tile, usual_workers));
  const Winograd planned = plan_winograd(run, call, tile, conditions.workers);
  result.pieces = winograd_pieces(planned, winograd_stages(planned) / 2);
  result.scratch = winograd_scratch(planned);
  result.packed_bytes = transformed_size(planned) * static_cast<int64_t>(sizeof(float));
  return result;
}

Plan plan_for_amx(const Convolution& call, const Conditions& conditions, int64_t parts) {
  const bool f32 = conditions.element == Element::f32;
  Amx planned;
  plan_amx(call, f32 ? 4 : 2, parts, conditions.workers, planned);
  Plan result;
  result.algorithm = Algorithm::amx;
  result.name = "amx";
  result.kernel = (f32 ? amx_f32 : amx_bf16).preview().first;
  // Measured: a product of tiles does 14.7 times the multiply-adds of a float32 vector unit.
  result.cost = static_cast<double>(call.batch * call.groups * call.channels * call.filters) *
                (parts == 2 ? 3.0 : 1.0) / 14.7;
  for (const Axis& axis : call.axes) result.cost *= static_cast<double>(axis.count * axis.taps.size());
  result.pieces = planned.pieces;
  result.scratch = amx_scratch(planned);
  result.packed_bytes = amx_packed_size(planned);
  return result;
}

Plan plan_for_amx_winograd(const Convolution& call, const Conditions& conditions) {
  AmxWinograd planned;
  plan_amx_winograd(call, usual_workers, planned);
  Plan result;
  result.algorithm = Algorithm::amx_winograd;
  result.name = "amx_winograd";
  result.kernel = amx_winograd_f32.preview().first;
  // Measured: in a cycle of its cost the other candidates do this many of theirs.
  result.cost = amx_winograd_cost(planned) * 19.0;
  plan_amx_winograd(call, conditions.workers, planned);
  result.pieces = planned.pieces;
  result.scratch = planned.scratch;
  result.packed_bytes = amx_winograd_packed_size(planned);
  return result;
}

// What a plan depends on, in numbers: quicker to make than the text of plan_key.
std::vector<int64_t> numbers(const Convolution& call, const Conditions& conditions) {
  std::vector<int64_t> key = {static_cast<int64_t>(conditions.element),
                              conditions.workers,
                              static_cast<int64_t>(isa::active()),
                              static_cast<int64_t>(conditions.precision),
                              call.batch,
                              call.groups,
                              call.channels,
                              call.filters};
  for (const Axis& axis : call.axes) {
    for (const int64_t n : {axis.input, axis.output, axis.count, axis.stride, axis.write_first,
                            axis.write_step, static_cast<int64_t>(axis.taps.size())}) {
      key.push_back(n);
    }
    for (const Tap& tap : axis.taps) {
      key.push_back(tap.offset);
      key.push_back(tap.index);
    }
  }
  return key;
}

struct Kept {
  std::mutex mutex;
  int64_t edition = 0;  // of the plan book
  std::unordered_map<std::vector<int64_t>, std::shared_ptr<const Plan>, KeyHash> plans;
};

Kept& kept() {
  static Kept* instance = [] {
    auto* made = new Kept;
    pthread_atfork([] { kept().mutex.lock(); }, [] { kept().mutex.unlock(); }, [] { kept().mutex.unlock(); });
    return made;
  }();
  return *instance;
}

}  // namespace

int64_t amx_parts(const Conditions& conditions) {
  if (isa::active() != isa::Level::amx || conditions.element == Element::f64) return 0;
  if (conditions.element == Element::bf16 || conditions.precision == Precision::medium) return 1;
  return conditions.precision == Precision::high ? 2 : 0;
}

std::vector<Plan> candidates(const Convolution& call, const Conditions& conditions) {
  const int64_t parts = amx_parts(conditions);
  std::vector<Plan> plans;
  if (amx_serves(call, parts)) {
    plans.push_back(plan_for_amx(call, conditions, parts));
    if (parts == 1) return plans;  // one product of bfloat16 numbers is always less work than Winograd
    if (amx_winograd_serves(call)) plans.push_back(plan_for_amx_winograd(call, conditions));
  } else {
    plans.push_back(plan_direct(call, conditions));
  }
  const bool winograd =
      conditions.element != Element::f64 && conditions.precision != Precision::highest && !is_depthwise(call);
  if (winograd) {
    for (const auto& tile : winograd_tiles(call)) plans.push_back(plan_tile(call, conditions, tile));
  }
  std::stable_sort(plans.begin(), plans.end(), [](const Plan& a, const Plan& b) { return a.cost < b.cost; });
  return plans;
}

std::shared_ptr<const Plan> plan_for(const Convolution& call, const Conditions& conditions) {
  constexpr size_t most_plans = 1 << 12;
  const std::vector<int64_t> key = numbers(call, conditions);
  const int64_t edition = plan_book_edition();
  {
    const std::lock_guard lock(kept().mutex);
    if (kept().edition != edition || kept().plans.size() > most_plans) kept().plans.clear();
    kept().edition = edition;
    if (const auto it = kept().plans.find(key); it != kept().plans.end()) return it->second;
  }
  std::vector<Plan> plans = candidates(call, conditions);
  const std::string measured = measured_choice(plan_key(call, conditions));
  auto chosen =
      std::find_if(plans.begin(), plans.end(), [&](const Plan& plan) { return plan.name == measured; });
  if (chosen == plans.end()) chosen = plans.begin();
  auto plan = std::make_shared<const Plan>(std::move(*chosen));
  const std::lock_guard lock(kept().mutex);
  if (kept().edition == edition) kept().plans[key] = plan;
  return plan;
}

}  // namespace volnet::conv3d

// How a convolution is run: the candidates with their costs, and the one that was chosen.
//
// The choice of algorithm and tile decides the rounding of the result. So it depends on sizes, dtype,
// precision and instruction set alone: neither on the number of threads, nor on whether packed weights are at
// hand. The blocking does follow the number of threads.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/conv3d/conv3d.h"
#include "kernels/conv3d/precision.h"

namespace volnet::conv3d {

enum class Element { f32, bf16, f64 };
enum class Algorithm { direct, depthwise, winograd, amx, amx_winograd };

// What a choice depends on besides the call and the instruction set in force.
struct Conditions {
  Element element;
  Precision precision;
  int64_t workers;
};

// How many bfloat16 numbers stand for a value on AMX: none where the machine has no AMX, or the precision
// does not allow it.
int64_t amx_parts(const Conditions& conditions);

struct Plan {
  Algorithm algorithm = Algorithm::direct;
  std::array<int64_t, 3> tile{};  // of Winograd
  std::string name;               // direct, depthwise, wino444, amx, amx_winograd
  std::string kernel;             // conv3d_f32_wino444_avx512
  double cost = 0;                // expected work, in multiply-adds at the level's speed
  int64_t pieces = 0;             // independent pieces of work
  int64_t scratch = 0;            // bytes a worker
  int64_t packed_bytes = 0;       // of the packed weights
};

// All that can run `call` (sizes and axes set), the cheapest first.
std::vector<Plan> candidates(const Convolution& call, const Conditions& conditions);

// The candidate that runs: the one that was measured to be the fastest (see plan_book.h), else the cheapest.
// Kept for the next call of the same sizes.
std::shared_ptr<const Plan> plan_for(const Convolution& call, const Conditions& conditions);

}  // namespace volnet::conv3d

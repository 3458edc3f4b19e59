// Choices that were measured on the real shapes, by the text of what they depend on. volnet.plans reads them
// from a file and writes them to it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernels/conv3d/plan.h"

namespace volnet::conv3d {

// "conv3d f32 high avx512 n1 g1 c32 k32 ...": all that the choice for `call` depends on but the machine.
std::string plan_key(const Convolution& call, const Conditions& conditions);

// Whether calls without a measured choice are to measure it.
bool measuring();
void set_measuring(bool on);

// The name of the measured choice, or nothing.
std::string measured_choice(const std::string& key);
void remember_choices(const std::map<std::string, std::string>& choices);
std::map<std::string, std::string> measured_choices();
void forget_choices();

// Changes whenever a choice is remembered or forgotten.
int64_t plan_book_edition();

// The kernels of the plans that ran since set_tracing(true), in order.
bool tracing();
void set_tracing(bool on);
void trace(const std::string& kernel);
std::vector<std::string> take_trace();

}  // namespace volnet::conv3d

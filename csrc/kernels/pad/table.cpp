#include <numeric>

#include "kernels/pad/pad.h"

namespace volnet::pad {

using isa::Level;

Axis axis_of(Mode mode, int64_t in, int64_t before, int64_t after) {
  Axis axis{in, in + before + after, {}, 0, 0};
  // Of circular: what is left of the volume.
  const int64_t cut = std::max<int64_t>(-before, 0), left = in - cut - std::max<int64_t>(-after, 0);
  axis.source.resize(static_cast<size_t>(axis.out));
  for (int64_t o = 0; o < axis.out; ++o) {
    int64_t i = o - before;
    if (mode == Mode::constant) {
      i = i < 0 || i >= in ? -1 : i;
    } else if (mode == Mode::replicate) {
      i = std::clamp<int64_t>(i, 0, in - 1);
    } else if (mode == Mode::reflect) {
      i = i < 0 ? -i : i >= in ? 2 * (in - 1) - i : i;
    } else {
      i = cut + (i - cut + left) % left;
    }
    axis.source[static_cast<size_t>(o)] = i;
  }
  axis.begin = std::clamp<int64_t>(before, 0, axis.out);
  axis.end = std::clamp<int64_t>(before + in, axis.begin, axis.out);
  return axis;
}

Shown shown_of(const Axis& axis) {
  Shown shown{axis.in, axis.out, {}, {}, 0, 0, 0, 0, 0, {}};
  if (axis.begin < axis.end) {
    shown.inner_begin = axis.source[static_cast<size_t>(axis.begin)];
    shown.inner_end = shown.inner_begin + axis.end - axis.begin;
    shown.before = axis.begin - shown.inner_begin;
  }
  for (int64_t o = 0; o < axis.out; ++o) {
    const int64_t i = axis.source[static_cast<size_t>(o)];
    if (i >= 0 && (o < axis.begin || o >= axis.end)) shown.border.push_back({i, o});
  }
  shown.first.assign(static_cast<size_t>(axis.in) + 1, 0);
  for (const int64_t i : axis.source) {
    if (i >= 0) ++shown.first[static_cast<size_t>(i) + 1];
  }
  const auto times = [&](int64_t i) { return shown.first[static_cast<size_t>(i) + 1]; };
  // The longest run of inputs that no other output shows.
  for (int64_t o = axis.begin, begin = 0; o < axis.end; ++o) {
    const int64_t i = axis.source[static_cast<size_t>(o)];
    if (o == axis.begin || times(i - 1) > 1) begin = i;
    if (times(i) == 1 && i + 1 - begin > shown.end - shown.begin) {
      shown.begin = begin;
      shown.end = i + 1;
    }
  }
  std::partial_sum(shown.first.begin(), shown.first.end(), shown.first.begin());
  shown.outputs.resize(static_cast<size_t>(shown.first.back()));
  std::vector<int64_t> next = shown.first;
  for (int64_t o = 0; o < axis.out; ++o) {
    const int64_t i = axis.source[static_cast<size_t>(o)];
    if (i >= 0) shown.outputs[static_cast<size_t>(next[static_cast<size_t>(i)]++)] = o;
  }
  return shown;
}

const isa::KernelTable<ForwardKernel> forward_kernels{{"pad_scalar", Level::scalar, scalar::forward},
                                                      {"pad_avx2", Level::avx2, avx2::forward},
                                                      {"pad_avx512", Level::avx512, avx512::forward}};
const isa::KernelTable<BackwardKernel> backward_f32{
    {"pad_backward_f32_scalar", Level::scalar, scalar::backward_f32},
    {"pad_backward_f32_avx2", Level::avx2, avx2::backward_f32},
    {"pad_backward_f32_avx512", Level::avx512, avx512::backward_f32}};
const isa::KernelTable<BackwardKernel> backward_bf16{
    {"pad_backward_bf16_scalar", Level::scalar, scalar::backward_bf16},
    {"pad_backward_bf16_avx2", Level::avx2, avx2::backward_bf16},
    {"pad_backward_bf16_avx512", Level::avx512, avx512::backward_bf16}};
const isa::KernelTable<BackwardKernel> backward_f64{
    {"pad_backward_f64_scalar", Level::scalar, scalar::backward_f64}};

}  // namespace volnet::pad

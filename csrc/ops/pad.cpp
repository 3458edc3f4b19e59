// torch.ops.volnet.pad and _pad_backward.
#include "kernels/pad/pad.h"

#include "ops/dtypes.h"
#include "ops/pad_value.h"
#include "ops/tensors.h"

namespace volnet {
namespace {

using pad::Axis;
using pad::Mode;

constexpr const char* op = "pad";

// Work for one thread at a time.
constexpr int64_t piece_bytes = int64_t{256} << 10;
// Larger results have mostly left the caches by the time they are read.
constexpr int64_t stream_from = int64_t{32} << 20;

Mode mode_of(const std::string& name) {
  if (name == "constant") return Mode::constant;
  if (name == "reflect") return Mode::reflect;
  if (name == "replicate") return Mode::replicate;
  VOLNET_CHECK(name == "circular", op, ": there is no mode '", name, "'");
  return Mode::circular;
}

// sizes: of a volume [N, C, D, H, W]; pads: what each axis gets before and after, the last axis first.
std::vector<Axis> axes_of(const std::vector<int64_t>& sizes, const std::vector<int64_t>& pads, Mode mode) {
  VOLNET_CHECK(sizes.size() == 5, op, ": x must be [N, C, D, H, W], got ", shape_text(sizes));
  VOLNET_CHECK(pads.size() == 6, op, ": pad must have six numbers, got ", shape_text(pads));
  std::vector<Axis> axes;
  for (size_t i = 0; i < 3; ++i) {
    const int64_t in = sizes[2 + i], before = pads[4 - 2 * i], after = pads[5 - 2 * i];
    const int64_t left = in + std::min<int64_t>(before, 0) + std::min<int64_t>(after, 0);
    const int64_t most = std::max(before, after);
    const int64_t limit = mode == Mode::reflect ? in - 1 : left;  // of circular
    const bool bounded = mode == Mode::reflect || mode == Mode::circular;
    const bool mapped = mode == Mode::reflect || mode == Mode::replicate;  // whatever is taken away
    VOLNET_CHECK((mapped ? in + before + after : left) >= 0 &&
                     (mode == Mode::constant || (in > 0 && (!bounded || most <= limit))),
                 op, ": padding ", shape_text(pads), " does not fit an input of ", shape_text(sizes));
    axes.push_back(pad::axis_of(mode, in, before, after));
  }
  return axes;
}

std::vector<int64_t> padded(std::vector<int64_t> sizes, const std::vector<Axis>& axes) {
  for (size_t i = 0; i < 3; ++i) sizes[2 + i] = axes[i].out;
  return sizes;
}

// Calls f for rows [begin, end) of all of a volume of `sizes`, of which a row has row_bytes.
template <class F>
void for_rows(int64_t rows, int64_t row_bytes, const F& f) {
  const int64_t each = std::max<int64_t>(piece_bytes / row_bytes, 1);
  for_each_piece((rows + each - 1) / each,
                 [&](int64_t piece, int64_t) { f(piece * each, std::min((piece + 1) * each, rows)); });
}

Tensor forward(const Tensor& input, std::vector<int64_t> pads, const std::string& name, double value) {
  const Mode mode = mode_of(name);
  const std::vector<Axis> axes = axes_of(sizes_of(input), pads, mode);
  const Layout5 layout = layout_of(input);
  const auto element_size = static_cast<int64_t>(input.element_size());
  // Elements of one byte have no kernel for the change of layout, and none is needed to make a volume dense.
  const bool is_last = layout == Layout5::channels_last;
  const bool dense = has_strides(
      input, is_last ? channels_last_strides(sizes_of(input)) : contiguous_strides(sizes_of(input)));
  Tensor x = input;
  if (!dense) {
    x = empty_strided(sizes_of(input),
                      is_last ? channels_last_strides(sizes_of(input)) : contiguous_strides(sizes_of(input)),
                      input.scalar_type(), element_size, op);
    torch::stable::copy_(x, input);
  }
  const std::vector<int64_t> sizes = padded(sizes_of(x), axes);
  Tensor y = empty_strided(sizes, is_last ? channels_last_strides(sizes) : contiguous_strides(sizes),
                           x.scalar_type(), element_size, op);
  if (y.numel() == 0) return y;
  const int64_t planes = sizes[0] * (is_last ? 1 : sizes[1]), voxel = (is_last ? sizes[1] : 1) * element_size;
  const pad::Forward params{static_cast<const char*>(x.const_data_ptr()),
                            static_cast<char*>(y.mutable_data_ptr()),
                            axes[0],
                            axes[1],
                            axes[2],
                            voxel,
                            mode == Mode::constant ? pad_bytes(x.scalar_type(), value, op) : 0,
                            y.numel() * element_size >= stream_from};
  const auto kernel = pad::forward_kernels.best();
  for_rows(planes * sizes[2] * sizes[3], sizes[4] * voxel,
           [&](int64_t begin, int64_t end) { kernel(params, begin, end); });
  return y;
}

// The gradient of an x of these sizes.
Tensor backward(const Tensor& grad, std::vector<int64_t> x_sizes, std::vector<int64_t> pads,
                const std::string& name, bool channels_last) {
  const std::vector<Axis> axes = axes_of(x_sizes, pads, mode_of(name));
  VOLNET_CHECK(sizes_of(grad) == padded(x_sizes, axes), op, " backward: the gradient ",
               shape_text(sizes_of(grad)), " does not belong to an input of ", shape_text(x_sizes));
  const Layout5 layout = channels_last ? Layout5::channels_last : Layout5::plain;
  return with_floating_type(grad.scalar_type(), op, "the gradient", [&](auto type) {
    using T = decltype(type);
    const Tensor dy = to_layout(grad, layout, op);
    Tensor dx = empty_volume<T>(x_sizes, layout, op);
    if (dx.numel() == 0) return dx;
    const pad::Shown d = pad::shown_of(axes[0]), h = pad::shown_of(axes[1]), w = pad::shown_of(axes[2]);
    const int64_t planes = x_sizes[0] * (channels_last ? 1 : x_sizes[1]);
    const int64_t voxel = channels_last ? x_sizes[1] : 1;
    const int64_t row_bytes = x_sizes[4] * voxel * static_cast<int64_t>(sizeof(T));
    const pad::Backward params{dy.const_data_ptr(),
                               dx.mutable_data_ptr(),
                               d,
                               h,
                               w,
                               voxel,
                               dx.numel() * static_cast<int64_t>(sizeof(T)) >= stream_from};
    const auto kernel = best_for<T>(pad::backward_f32, pad::backward_bf16, pad::backward_f64);
    for_rows(planes * x_sizes[2] * x_sizes[3], row_bytes,
             [&](int64_t begin, int64_t end) { kernel(params, begin, end); });
    return dx;
  });
}

}  // namespace
}  // namespace volnet

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) {
  m.def("pad(Tensor x, int[] pad, str mode, float value) -> Tensor");
  m.def("_pad_backward(Tensor grad, int[] x_size, int[] pad, str mode, bool channels_last) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) {
  m.impl("pad", TORCH_BOX(&volnet::forward));
  m.impl("_pad_backward", TORCH_BOX(&volnet::backward));
}

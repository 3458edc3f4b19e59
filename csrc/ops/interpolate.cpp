// torch.ops.volnet.interpolate and _interpolate_backward.
#include "ops/separable.h"

namespace volnet {
namespace {

using separable::Interpolation;
using separable::Maps;
using separable::Table;

constexpr const char* op = "interpolate";

struct Arguments {
  std::string mode;
  bool align_corners;
  std::optional<std::vector<double>> scale;  // factors, where these and not the sizes are to be used
};

template <class A>
Table<A> table_of(const Interpolation<A>& axis, const Arguments& arguments, bool channels_last) {
  if (arguments.mode == "nearest") return separable::nearest(axis, false, channels_last);
  if (arguments.mode == "nearest-exact") return separable::nearest(axis, true, channels_last);
  if (arguments.mode == "trilinear") return separable::linear(axis, arguments.align_corners);
  VOLNET_CHECK(arguments.mode == "area", op, ": mode must be nearest, nearest-exact, trilinear or area, got ",
               arguments.mode);
  return separable::area(axis);
}

// The maps from [D, H, W] of `in` to those of `out`.
template <class T>
Maps<compute_t<T>> maps_of(const std::vector<int64_t>& in, const std::vector<int64_t>& out, int64_t channels,
                           Layout5 layout, const Arguments& arguments) {
  // As torch chooses between its two kernels.
  const bool channels_last = layout == Layout5::channels_last && channels > 3;
  const auto table = [&](size_t i) {
    const auto scale = arguments.scale ? std::optional<double>((*arguments.scale)[i]) : std::nullopt;
    return table_of<compute_t<T>>({in[i], out[i], scale}, arguments, channels_last);
  };
  return {table(0), table(1), table(2)};
}

template <class A>
Maps<A> transposed(const Maps<A>& maps) {
  return {maps.d.transposed(), maps.h.transposed(), maps.w.transposed()};
}

void check(const std::vector<int64_t>& in, const std::vector<int64_t>& out, const Arguments& arguments) {
  VOLNET_CHECK(in.size() == 3 && out.size() == 3 && (!arguments.scale || arguments.scale->size() == 3), op,
               ": sizes and scales must have three numbers, got ", shape_text(in), " and ", shape_text(out));
  for (size_t i = 0; i < 3; ++i) {
    VOLNET_CHECK(in[i] > 0 && out[i] > 0, op, ": sizes must be greater than 0, got input ", shape_text(in),
                 " and output ", shape_text(out));
    VOLNET_CHECK(!arguments.scale || (*arguments.scale)[i] > 0, op, ": scales must be greater than 0");
  }
}

std::vector<int64_t> space_of(const Tensor& x) {
  VOLNET_CHECK(x.dim() == 5, op, ": x must be [N, C, D, H, W], got ", shape_text(sizes_of(x)));
  return {x.size(2), x.size(3), x.size(4)};
}

Tensor forward(const Tensor& x, std::vector<int64_t> size, std::string mode, bool align_corners,
               std::optional<std::vector<double>> scale) {
  const Arguments arguments{mode, align_corners, scale};
  const auto space = space_of(x);
  check(space, size, arguments);
  const Layout5 layout = layout_of(x);
  const auto run = [&]<class T>() {
    return separable::apply<T>(x, layout, maps_of<T>(space, size, x.size(1), layout, arguments), op);
  };
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return run.operator()<float>();
    case ScalarType::BFloat16:
      return run.operator()<bfloat16>();
    case ScalarType::Double:
      return run.operator()<double>();
    default:
      VOLNET_CHECK(false, op, ": x must be float32, float64 or bfloat16");
  }
}

Tensor backward(const Tensor& grad, std::vector<int64_t> input_size, std::string mode, bool align_corners,
                std::optional<std::vector<double>> scale, bool channels_last) {
  const Arguments arguments{mode, align_corners, scale};
  const auto size = space_of(grad);
  VOLNET_CHECK(input_size.size() == 5 && input_size[0] == grad.size(0) && input_size[1] == grad.size(1), op,
               ": gradient ", shape_text(sizes_of(grad)), " does not belong to an input of ",
               shape_text(input_size));
  const std::vector<int64_t> space(input_size.begin() + 2, input_size.end());
  check(space, size, arguments);
  const Layout5 layout = channels_last ? Layout5::channels_last : Layout5::plain;
  const auto run = [&]<class T>() {
    const auto maps = maps_of<T>(space, size, grad.size(1), layout, arguments);
    return separable::apply<T>(grad, layout, transposed(maps), op);
  };
  switch (grad.scalar_type()) {
    case ScalarType::Float:
      return run.operator()<float>();
    case ScalarType::BFloat16:
      return run.operator()<bfloat16>();
    case ScalarType::Double:
      return run.operator()<double>();
    default:
      VOLNET_CHECK(false, op, ": the gradient must be float32, float64 or bfloat16");
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) {
  m.def("interpolate(Tensor x, int[] size, str mode, bool align_corners, float[]? scale) -> Tensor");
  m.def(
      "_interpolate_backward(Tensor grad, int[] input_size, str mode, bool align_corners, float[]? scale, "
      "bool channels_last) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) {
  m.impl("interpolate", TORCH_BOX(&forward));
  m.impl("_interpolate_backward", TORCH_BOX(&backward));
}

}  // namespace volnet

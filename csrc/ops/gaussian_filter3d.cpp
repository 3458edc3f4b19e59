// torch.ops.volnet.gaussian_filter3d and _gaussian_filter3d_backward.
#include <cmath>

#include "ops/separable.h"

namespace volnet {
namespace {

using separable::Boundary;
using separable::Maps;
using separable::Table;

constexpr const char* op = "gaussian_filter3d";

// As scipy.ndimage cuts and normalises it.
std::vector<double> gaussian(double sigma, double truncate) {
  if (sigma <= 1e-15) return {1.0};
  const auto radius = static_cast<int64_t>(truncate * sigma + 0.5);
  std::vector<double> kernel;
  double sum = 0;
  for (int64_t i = -radius; i <= radius; ++i) {
    const double x = static_cast<double>(i) / sigma;
    kernel.push_back(std::exp(-0.5 * x * x));
    sum += kernel.back();
  }
  for (double& weight : kernel) weight /= sum;
  return kernel;
}

Boundary boundary_of(const std::string& mode) {
  if (mode == "reflect") return Boundary::reflect;
  if (mode == "constant") return Boundary::constant;
  if (mode == "nearest") return Boundary::nearest;
  if (mode == "mirror") return Boundary::mirror;
  VOLNET_CHECK(mode == "wrap", op, ": mode must be reflect, constant, nearest, mirror or wrap, got ", mode);
  return Boundary::wrap;
}

template <class T>
Tensor filter(const Tensor& x, Layout5 layout, const std::vector<double>& sigma, double truncate,
              Boundary boundary, bool transposed) {
  const auto table = [&](size_t i) {
    const int64_t size = x.size(static_cast<int64_t>(2 + i));
    const auto map = separable::convolution<compute_t<T>>(size, gaussian(sigma[i], truncate), boundary);
    return transposed ? map.transposed() : map;
  };
  return separable::apply<T>(x, layout, {table(0), table(1), table(2)}, op);
}

Tensor run(const Tensor& x, Layout5 layout, const std::vector<double>& sigma, double truncate,
           const std::string& mode, bool transposed) {
  const Boundary boundary = boundary_of(mode);
  VOLNET_CHECK(sigma.size() == 3 && truncate >= 0, op, ": sigma must have three numbers, truncate be >= 0");
  for (const double s : sigma) VOLNET_CHECK(s >= 0 && s * truncate < 1e6, op, ": sigma is out of range: ", s);
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return filter<float>(x, layout, sigma, truncate, boundary, transposed);
    case ScalarType::BFloat16:
      return filter<bfloat16>(x, layout, sigma, truncate, boundary, transposed);
    case ScalarType::Double:
      return filter<double>(x, layout, sigma, truncate, boundary, transposed);
    default:
      VOLNET_CHECK(false, op, ": x must be float32, float64 or bfloat16");
  }
}

Tensor forward(const Tensor& x, std::vector<double> sigma, double truncate, std::string mode) {
  VOLNET_CHECK(x.dim() == 5, op, ": x must be [N, C, D, H, W], got ", shape_text(sizes_of(x)));
  return run(x, layout_of(x), sigma, truncate, mode, false);
}

Tensor backward(const Tensor& grad, std::vector<double> sigma, double truncate, std::string mode,
                bool channels_last) {
  VOLNET_CHECK(grad.dim() == 5, op, ": gradient must be [N, C, D, H, W], got ", shape_text(sizes_of(grad)));
  return run(grad, channels_last ? Layout5::channels_last : Layout5::plain, sigma, truncate, mode, true);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) {
  m.def("gaussian_filter3d(Tensor x, float[] sigma, float truncate, str mode) -> Tensor");
  m.def(
      "_gaussian_filter3d_backward(Tensor grad, float[] sigma, float truncate, str mode, bool channels_last) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) {
  m.impl("gaussian_filter3d", TORCH_BOX(&forward));
  m.impl("_gaussian_filter3d_backward", TORCH_BOX(&backward));
}

}  // namespace volnet

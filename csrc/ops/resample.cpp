// torch.ops.volnet._resample_aligned and _resample_affine: a volume on a grid with parallel axes, and on any.
#include "kernels/resample/resample.h"

#include "ops/separable.h"

namespace volnet {
namespace {

using separable::Sampling;

constexpr const char* op = "resample";

// The samples of an axis at start + step * o that lie in the volume, which ends half a voxel past the outer
// centres: [first, last).
struct Inside {
  int64_t first, last;
};

Inside inside(int64_t in, int64_t out, double start, double step) {
  // A grid that ends with the volume should not lose its last plane to rounding.
  constexpr double tolerance = 1e-6;
  const auto is_inside = [&](int64_t o) {
    const double position = start + step * static_cast<double>(o);
    return position >= -0.5 - tolerance && position < static_cast<double>(in) - 0.5 + tolerance;
  };
  Inside range{0, out};
  while (range.first < out && !is_inside(range.first)) ++range.first;
  while (range.last > range.first && !is_inside(range.last - 1)) --range.last;
  return range;
}

template <class S, class R>
Tensor sample(const Tensor& input, const std::vector<int64_t>& size, const std::vector<double>& start,
              const std::vector<double>& step, Sampling sampling, double pad_value) {
  const Tensor x = torch::stable::contiguous(input);
  Tensor y = empty_plain<R>(size, op);
  if (numel(size) == 0) return y;
  Inside range[3];
  bool all = true, none = x.numel() == 0;
  for (size_t i = 0; i < 3; ++i) {
    range[i] = inside(x.size(static_cast<int64_t>(i)), size[i], start[i], step[i]);
    all = all && range[i].first == 0 && range[i].last == size[i];
    none = none || range[i].first == range[i].last;
  }
  auto* result = mutable_data<R>(y);
  if (!all) {
    const int64_t plane = size[1] * size[2];
    for_each_piece(size[0], [&](int64_t d, int64_t) {
      std::fill_n(result + d * plane, plane, static_cast<R>(pad_value));
    });
  }
  if (none) return y;
  const auto table = [&](size_t i) {
    const int64_t in = x.size(static_cast<int64_t>(i));
    return separable::sampled<float>(in, range[i].first, range[i].last, start[i], step[i], sampling);
  };
  const int64_t plane = size[1] * size[2], row = size[2];
  separable::run<S, R>(
      {x.const_data_ptr(), result + range[0].first * plane + range[1].first * row + range[2].first, 1, 1, 0,
       plane, row},
      Layout5::plain, {table(0), table(1), table(2)}, op);
  return y;
}

Sampling sampling_of(const std::string& mode) {
  if (mode == "nearest") return Sampling::nearest;
  if (mode == "linear") return Sampling::linear;
  VOLNET_CHECK(mode == "cubic", op, ": mode must be nearest, linear or cubic, got ", mode);
  return Sampling::cubic;
}

// Calls f<S, R>() for the types of x and of the result.
template <class F>
Tensor for_types(const Tensor& x, bool to_int16, const F& f) {
  if (x.scalar_type() == ScalarType::Short) {
    return to_int16 ? f.template operator()<int16_t, int16_t>() : f.template operator()<int16_t, float>();
  }
  VOLNET_CHECK(x.scalar_type() == ScalarType::Float, op, ": volume must be int16 or float32");
  return to_int16 ? f.template operator()<float, int16_t>() : f.template operator()<float, float>();
}

Tensor resample_aligned(const Tensor& x, std::vector<int64_t> size, std::vector<double> start,
                        std::vector<double> step, std::string mode, double pad_value, bool to_int16) {
  VOLNET_CHECK(x.dim() == 3 && size.size() == 3 && start.size() == 3 && step.size() == 3, op,
               ": volume, size, start and step must have three axes, got ", shape_text(sizes_of(x)));
  const Sampling sampling = sampling_of(mode);
  return for_types(x, to_int16, [&]<class S, class R>() {
    return sample<S, R>(x, size, start, step, sampling, pad_value);
  });
}

// The coefficients of the spline through x, [D, H, W].
template <class S>
Tensor coefficients(const Tensor& x) {
  const auto sizes = sizes_of(x);
  Tensor y = empty_plain<float>(sizes, op);
  const auto table = [&](size_t i) { return separable::spline_coefficients<float>(sizes[i]); };
  const int64_t row = sizes[2], plane = sizes[1] * row;
  separable::run<S, float>({x.const_data_ptr(), y.mutable_data_ptr(), 1, 1, 0, plane, row}, Layout5::plain,
                           {table(0), table(1), table(2)}, op);
  return y;
}

template <class S, class R>
const isa::KernelTable<resample::Kernel>& affine_kernels() {
  if constexpr (sizeof(S) == 2) {
    return sizeof(R) == 2 ? resample::i16_i16 : resample::i16_f32;
  } else {
    return sizeof(R) == 2 ? resample::f32_i16 : resample::f32_f32;
  }
}

template <class S, class R>
resample::Kernel affine_any_size() {
  if constexpr (sizeof(S) == 2) {
    return sizeof(R) == 2 ? resample::scalar::i16_i16 : resample::scalar::i16_f32;
  } else {
    return sizeof(R) == 2 ? resample::scalar::f32_i16 : resample::scalar::f32_f32;
  }
}

template <class S, class R>
Tensor sample_affine(const Tensor& x, const std::vector<int64_t>& size, const std::vector<double>& map,
                     int64_t taps, double pad_value) {
  Tensor y = empty_plain<R>(size, op);
  if (numel(size) == 0) return y;
  if (x.numel() == 0) {
    std::fill_n(mutable_data<R>(y), numel(size), static_cast<R>(pad_value));
    return y;
  }
  resample::Params params{x.const_data_ptr(),
                          y.mutable_data_ptr(),
                          x.size(0),
                          x.size(1),
                          x.size(2),
                          size[1],
                          size[2],
                          {},
                          taps,
                          static_cast<float>(pad_value)};
  for (size_t i = 0; i < 12; ++i) params.map[i / 4][i % 4] = map[i];
  const resample::Kernel kernel =
      resample::fits_vector(params) ? affine_kernels<S, R>().best() : affine_any_size<S, R>();
  constexpr int64_t piece_elements = int64_t{1} << 14;
  const int64_t rows = size[0] * size[1], rows_per_piece = std::max<int64_t>(piece_elements / size[2], 1);
  for_each_piece((rows + rows_per_piece - 1) / rows_per_piece, [&](int64_t piece, int64_t) {
    const int64_t begin = piece * rows_per_piece;
    kernel(params, begin, std::min(begin + rows_per_piece, rows));
  });
  return y;
}

Tensor resample_affine(const Tensor& input, std::vector<int64_t> size, std::vector<double> index_map,
                       std::string mode, double pad_value, bool to_int16) {
  VOLNET_CHECK(input.dim() == 3 && size.size() == 3 && index_map.size() == 12, op,
               ": volume and size must have three axes, index_map twelve numbers, got ",
               shape_text(sizes_of(input)));
  const Sampling sampling = sampling_of(mode);
  const Tensor x = torch::stable::contiguous(input);
  return for_types(x, to_int16, [&]<class S, class R>() {
    if (sampling == Sampling::cubic && x.numel() > 0) {
      return sample_affine<float, R>(coefficients<S>(x), size, index_map, 4, pad_value);
    }
    return sample_affine<S, R>(x, size, index_map, sampling == Sampling::nearest ? 1 : 2, pad_value);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) {
  m.def(
      "_resample_aligned(Tensor x, int[] size, float[] start, float[] step, str mode, float pad_value, "
      "bool to_int16) -> Tensor");
  m.def(
      "_resample_affine(Tensor x, int[] size, float[] index_map, str mode, float pad_value, bool to_int16) "
      "-> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) {
  m.impl("_resample_aligned", TORCH_BOX(&resample_aligned));
  m.impl("_resample_affine", TORCH_BOX(&resample_affine));
}

}  // namespace volnet

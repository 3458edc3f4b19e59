// torch.ops.volnet.fractional_max_pool3d, fractional_max_pool3d_with_indices and
// _fractional_max_pool3d_backward: max_pool3d's kernels over windows in tables, which differ from plane to
// plane.
#include "ops/dtypes.h"
#include "ops/max_pool3d.h"

namespace volnet {
namespace {

constexpr const char* op = "fractional_max_pool3d";

using pooling::Range;

void check(const Tensor& x, const Tensor& samples, const std::vector<int64_t>& kernel_size,
           const std::vector<int64_t>& output_size) {
  VOLNET_CHECK(x.dim() == 5, op, ": x must be [N, C, D, H, W], got ", shape_text(sizes_of(x)));
  VOLNET_CHECK(kernel_size.size() == 3 && output_size.size() == 3, op,
               ": kernel_size and output_size must have three numbers each");
  for (size_t i = 0; i < 3; ++i) {
    const int64_t in = x.size(static_cast<int64_t>(2 + i));
    VOLNET_CHECK(kernel_size[i] > 0 && output_size[i] >= 0 && output_size[i] + kernel_size[i] - 1 < in, op,
                 ": kernel_size ", shape_text(kernel_size), " and output_size ", shape_text(output_size),
                 " do not fit an input of ", shape_text(sizes_of(x)));
  }
  VOLNET_CHECK(samples.dim() == 3 && samples.size(0) >= x.size(0) && samples.size(1) == x.size(1) &&
                   samples.size(2) == 3 && samples.scalar_type() == x.scalar_type(),
               op, ": random samples ", shape_text(sizes_of(samples)), " do not belong to an input of ",
               shape_text(sizes_of(x)));
}

// The windows of one axis of a plane. torch computes where they start in the type of the volume, rounding
// after every step.
template <class T>
void add_windows(T sample, int64_t in, int64_t out, int64_t kernel, std::vector<Range>& windows) {
  using A = compute_t<T>;
  const auto rounded = [](A value) { return static_cast<A>(to_float(from_float<T>(value))); };
  const A s = to_float(sample);
  VOLNET_CHECK(s >= 0 && s <= 1, op, ": random samples must be in [0, 1], got ", static_cast<double>(s));
  const int64_t last = in - kernel;
  const A alpha = out > 1 ? rounded(rounded(static_cast<A>(last)) / rounded(static_cast<A>(out - 1))) : A{0};
  const auto before = static_cast<int64_t>(rounded(s * alpha));
  for (int64_t o = 0; o + 1 < out; ++o) {
    const auto start =
        static_cast<int64_t>(rounded(rounded(rounded(static_cast<A>(o)) + s) * alpha)) - before;
    const int64_t begin = std::clamp<int64_t>(start, 0, last);  // bfloat16 may round past the volume's end
    windows.push_back({begin, begin + kernel});
  }
  if (out > 0) windows.push_back({last, in});
}

// The windows of every plane.
class Windows {
 public:
  Windows(const Tensor& x, const Tensor& samples, const std::vector<int64_t>& kernel_size,
          const std::vector<int64_t>& output_size)
      : in_(sizes_of(x)), out_(output_size), kernel_(kernel_size) {
    const Tensor dense = torch::stable::contiguous(samples);
    with_floating_type(x.scalar_type(), op, "x", [&](auto type) {
      using T = decltype(type);
      for (int64_t plane = 0; plane < in_[0] * in_[1]; ++plane) {
        for (size_t i = 0; i < 3; ++i) {
          add_windows<T>(data<T>(dense)[plane * 3 + static_cast<int64_t>(i)], in_[2 + i], out_[i], kernel_[i],
                         windows_[i]);
        }
      }
    });
  }
  pooling::Axes of(int64_t plane) const {
    const auto axis = [&](size_t i) -> pooling::Axis {
      return {in_[2 + i], out_[i], kernel_[i], 1, 0, 1, windows_[i].data() + plane * out_[i]};
    };
    return {axis(0), axis(1), axis(2)};
  }

 private:
  std::vector<int64_t> in_, out_, kernel_;
  std::array<std::vector<Range>, 3> windows_;
};

std::tuple<Tensor, std::optional<Tensor>> pool(const Tensor& x, const Tensor& samples,
                                               const std::vector<int64_t>& kernel_size,
                                               const std::vector<int64_t>& output_size, Indices indices) {
  check(x, samples, kernel_size, output_size);
  const Windows windows(x, samples, kernel_size, output_size);
  return maximum_of_planes(op, x, output_size, [&](int64_t plane) { return windows.of(plane); }, indices);
}

Tensor forward(const Tensor& x, const Tensor& samples, std::vector<int64_t> kernel_size,
               std::vector<int64_t> output_size) {
  return std::get<0>(pool(x, samples, kernel_size, output_size, Indices::none));
}

std::tuple<Tensor, Tensor> forward_with_indices(const Tensor& x, const Tensor& samples,
                                                std::vector<int64_t> kernel_size,
                                                std::vector<int64_t> output_size, bool narrow) {
  auto [y, indices] = pool(x, samples, kernel_size, output_size, narrow ? Indices::narrow : Indices::wide);
  return {y, *indices};
}

// Windows that hold those of any sample: backward looks no further for what a voxel gets.
std::vector<Range> all_windows(int64_t in, int64_t out, int64_t kernel) {
  const int64_t last = in - kernel, rounding = 2 + in / 64;  // bfloat16's, of a start
  std::vector<Range> windows;
  for (int64_t o = 0; o < out; ++o) {
    const int64_t start = out > 1 ? o * last / (out - 1) : last;
    windows.push_back({std::max<int64_t>(start - rounding, 0), std::min(start + rounding + kernel, in)});
  }
  return windows;
}

Tensor backward(const Tensor& grad, const Tensor& indices, std::vector<int64_t> input_size,
                std::vector<int64_t> kernel_size, bool channels_last) {
  check_indices(op, grad, indices, input_size);
  VOLNET_CHECK(kernel_size.size() == 3, op, ": kernel_size must have three numbers");
  const auto windows = [&](size_t i) {
    return all_windows(input_size[2 + i], grad.size(static_cast<int64_t>(2 + i)), kernel_size[i]);
  };
  const pooling::TableAxis d(input_size[2], windows(0)), h(input_size[3], windows(1)),
      w(input_size[4], windows(2));
  return maximum_backward(op, grad, indices, input_size, {d, h, w}, channels_last);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) {
  m.def("fractional_max_pool3d(Tensor x, Tensor samples, int[] kernel_size, int[] output_size) -> Tensor");
  m.def(
      "fractional_max_pool3d_with_indices(Tensor x, Tensor samples, int[] kernel_size, int[] output_size, "
      "bool narrow=False) -> (Tensor, Tensor)");
  m.def(
      "_fractional_max_pool3d_backward(Tensor grad, Tensor indices, int[] input_size, int[] kernel_size, "
      "bool channels_last) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) {
  m.impl("fractional_max_pool3d", TORCH_BOX(&forward));
  m.impl("fractional_max_pool3d_with_indices", TORCH_BOX(&forward_with_indices));
  m.impl("_fractional_max_pool3d_backward", TORCH_BOX(&backward));
}

}  // namespace volnet

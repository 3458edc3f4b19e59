// torch.ops.volnet.norm, _norm_apply and _norm_backward: batch, instance and group norm.
#include "kernels/norm/norm.h"

#include <cmath>
#include <limits>

#include "ops/activation.h"
#include "ops/coefficients.h"
#include "ops/tensors.h"

namespace volnet {
namespace {

using norm::Kernel;
using norm::Piece;

constexpr const char* op = "norm";

struct Kernels {
  const isa::KernelTable<Kernel>&moments, &apply, &gradient_sums, &gradient;
};
template <class S>
Kernels kernels();
template <>
Kernels kernels<float>() {
  return {norm::moments_f32, norm::apply_f32, norm::gradient_sums_f32, norm::gradient_f32};
}
template <>
Kernels kernels<bfloat16>() {
  return {norm::moments_bf16, norm::apply_bf16, norm::gradient_sums_bf16, norm::gradient_bf16};
}
template <>
Kernels kernels<double>() {
  return {norm::moments_f64, norm::apply_f64, norm::gradient_sums_f64, norm::gradient_f64};
}

// How a volume falls into sets of values that share statistics, and into pieces of work.
//
// A matrix is a run of dense values whose channels alternate: an image in channels last (all images where
// they share statistics), one channel of one image in plain layout. A value's cell is its image and channel,
// numbered image * C + channel; a matrix holds `channels` cells. A set has `members` cells. A unit is the
// least number of sets that share no matrix with others: it can be worked on from its statistics to its
// result while it is in a core's cache.
struct Partition {
  int64_t total_channels, groups;
  bool per_image;
  int64_t matrices, channels, elements;  // of a matrix: cells, values
  int64_t period;                        // of the kernels
  int64_t piece, pieces;                 // values of a piece; pieces of a matrix
  int64_t units, unit_matrices, unit_sets, sets;
  int64_t members;        // cells of a set
  int64_t set_stride;     // between the cells of a set
  int64_t matrix_stride;  // between the matrices of a unit

  int64_t values() const { return elements / channels; }  // of a cell
  int64_t cells() const { return matrices * channels; }
  int64_t cell(int64_t set, int64_t member) const {
    return set_stride == 1 ? set * members + member : set + member * set_stride;
  }
  int64_t matrix(int64_t unit, int64_t i) const {
    return matrix_stride == 1 ? unit * unit_matrices + i : unit + i * matrix_stride;
  }
  int64_t size_of(int64_t piece_index) const { return std::min(piece, elements - piece_index * piece); }
};

// Values of a piece, about: they stay in a core's cache between two passes, and the pieces of one layer keep
// many cores busy.
constexpr int64_t piece_elements = int64_t{1} << 16;

Partition partition_of(const std::vector<int64_t>& sizes, Layout5 layout, int64_t groups, bool per_image) {
  Partition p{};
  const int64_t batch = sizes[0], channels = sizes[1], voxels = sizes[2] * sizes[3] * sizes[4];
  p.total_channels = channels;
  p.groups = groups;
  p.per_image = per_image;
  p.sets = (per_image ? batch : 1) * groups;
  p.set_stride = p.matrix_stride = 1;
  // One voxel lies the same both ways; as channels last its images are one matrix.
  if (layout == Layout5::plain && voxels > 1) {
    p.matrices = batch * channels;
    p.channels = 1;
    p.elements = voxels;
    p.members = p.unit_matrices = per_image ? channels / groups : batch;
    p.units = p.sets;
    if (!per_image) p.set_stride = p.matrix_stride = channels;
  } else {
    p.matrices = per_image ? batch : 1;
    p.channels = channels;
    p.elements = voxels * channels * (per_image ? 1 : batch);
    p.members = channels / groups;
    p.unit_matrices = 1;
    p.units = p.matrices;
  }
  p.unit_sets = p.sets / p.units;
  p.period = norm::period_of(p.channels, p.elements);
  p.piece = std::max<int64_t>(piece_elements / p.period, 1) * p.period;
  p.pieces = (p.elements + p.piece - 1) / p.piece;
  return p;
}

// Collects what kernels find in the pieces of a set, finishes the set, and writes what depends on it. Where
// there are units enough, each is done by one thread; else a phase is done for all before the next, and the
// last phase starts where the first ended.
template <class Collect, class Finish, class Write>
void run(const Partition& p, const Collect& collect, const Finish& finish, const Write& write) {
  const int64_t unit_elements = p.unit_matrices * p.elements;
  if (p.units >= 4 * worker_count(p.units)) {
    const int64_t units_of_piece = std::max<int64_t>(piece_elements / unit_elements, 1);
    for_each_piece((p.units + units_of_piece - 1) / units_of_piece, [&](int64_t i, int64_t worker) {
      const int64_t end = std::min((i + 1) * units_of_piece, p.units);
      for (int64_t unit = i * units_of_piece; unit < end; ++unit) {
        for (int64_t m = 0; m < p.unit_matrices; ++m) {
          for (int64_t k = 0; k < p.pieces; ++k) collect(p.matrix(unit, m), k, worker);
        }
        for (int64_t set = unit * p.unit_sets; set < (unit + 1) * p.unit_sets; ++set) finish(set);
        for (int64_t m = p.unit_matrices; m-- > 0;) {
          for (int64_t k = p.pieces; k-- > 0;) write(p.matrix(unit, m), k, worker);
        }
      }
    });
    return;
  }
  constexpr int64_t sets_of_piece = 16;
  const int64_t all = p.matrices * p.pieces;
  for_each_piece(all, [&](int64_t i, int64_t worker) { collect(i / p.pieces, i % p.pieces, worker); });
  for_each_piece((p.sets + sets_of_piece - 1) / sets_of_piece, [&](int64_t i, int64_t) {
    for (int64_t set = i * sets_of_piece; set < std::min((i + 1) * sets_of_piece, p.sets); ++set) finish(set);
  });
  for_each_piece(all, [&](int64_t i, int64_t worker) {
    const int64_t reversed = all - 1 - i;
    write(reversed / p.pieces, reversed % p.pieces, worker);
  });
}

struct Arguments {
  std::optional<Tensor> weight, bias;  // [C]
  std::optional<Tensor> residual;      // like x
  double epsilon;
  Activation activation;
  double negative_slope;
};

// One call: its tensors, its partition, and what its phases tell each other.
template <class S>
class Call {
  using A = compute_t<S>;

 public:
  Call(const Tensor& input, int64_t groups, bool per_image, const Arguments& arguments)
      : sizes(sizes_of(input)),
        layout(layout_of(input)),
        p(partition_of(sizes, layout, groups, per_image)),
        arguments_(arguments),
        x_(to_layout(input, layout, op)),
        x_data_(data<S>(x_)),
        weight_(coefficients(arguments.weight, sizes[1], 1.0, op)),
        bias_(coefficients(arguments.bias, sizes[1], 0.0, op)),
        scratch_step_((norm::scratch_bytes(p.period) + 63) / 64 * 64),
        scratch_(worker_count(std::numeric_limits<int64_t>::max()) * scratch_step_, op),
        coefficients_(6 * p.cells() * static_cast<int64_t>(sizeof(A)), op),
        results_(2 * p.cells() * p.pieces * static_cast<int64_t>(sizeof(double)), op),
        cells_(2 * p.cells() * static_cast<int64_t>(sizeof(double)), op) {
    if (arguments.residual) {
      residual_ = to_layout(*arguments.residual, layout, op);
      residual_data_ = data<S>(*residual_);
    }
  }

  // Phases of the forward.
  void moments(Kernel kernel, int64_t matrix, int64_t k, int64_t worker) const {
    kernel(piece(matrix, k), results(matrix, k), scratch(worker));
  }
  void finish_moments(int64_t set, double* mean, double* variance) const {
    double* const means = cells_.as<double>();
    double* const squares = means + p.cells();
    const auto count = static_cast<double>(p.values());
    double sum = 0, square = 0;
    for (int64_t i = 0; i < p.members; ++i) {
      const int64_t cell = p.cell(set, i);
      join_moments(cell, means[cell], squares[cell]);
      sum += means[cell];
    }
    mean[set] = sum / static_cast<double>(p.members);
    for (int64_t i = 0; i < p.members; ++i) {
      const int64_t cell = p.cell(set, i);
      const double difference = means[cell] - mean[set];
      square += squares[cell] + difference * difference * count;
    }
    variance[set] = std::max(square, 0.0) / (count * static_cast<double>(p.members));
  }
  void finish_coefficients(int64_t set, const double* mean, const double* variance) const {
    const double invstd = 1 / std::sqrt(variance[set] + arguments_.epsilon);
    for (int64_t i = 0; i < p.members; ++i) {
      const int64_t cell = p.cell(set, i), c = cell % p.total_channels;
      const A center = static_cast<A>(mean[set]);
      const double scale = invstd * weight_[static_cast<size_t>(c)],
                   rest = mean[set] - static_cast<double>(center);
      coefficient(0)[cell] = center;
      coefficient(1)[cell] = static_cast<A>(scale);
      coefficient(2)[cell] = static_cast<A>(bias_[static_cast<size_t>(c)] - rest * scale);
    }
  }
  void apply(Kernel kernel, int64_t matrix, int64_t k, int64_t worker, S* y) const {
    Piece at = piece(matrix, k);
    at.y = y + offset(matrix, k);
    at.stream = streams();
    kernel(at, nullptr, scratch(worker));
  }

  // Phases of the backward.
  void gradient_sums(Kernel kernel, int64_t matrix, int64_t k, int64_t worker, const S* dy) const {
    Piece at = piece(matrix, k);
    at.grad = dy + offset(matrix, k);
    kernel(at, results(matrix, k), scratch(worker));
  }
  // Makes of the sums of a set those of each cell, of dz and of dz * (x - mean) / std, and what dx needs.
  // With `constant` statistics dx is a scaled dz.
  void finish_gradient(int64_t set, const double* mean, const double* variance, bool constant) const {
    double* const sums = cells_.as<double>();
    double* const products = sums + p.cells();
    const double invstd = 1 / std::sqrt(variance[set] + arguments_.epsilon);
    const double rest = mean[set] - static_cast<double>(static_cast<A>(mean[set]));
    double sum = 0, product = 0;
    for (int64_t i = 0; i < p.members; ++i) {
      const int64_t cell = p.cell(set, i);
      const double w = weight_[static_cast<size_t>(cell % p.total_channels)];
      join_sums(cell, sums[cell], products[cell]);
      products[cell] = (products[cell] - rest * sums[cell]) * invstd;
      sum += w * sums[cell];
      product += w * products[cell];
    }
    const double count = static_cast<double>(p.values() * p.members);
    const double by_x = constant ? 0 : -invstd * invstd * product / count;
    const double by_one = constant ? 0 : -invstd * sum / count;
    for (int64_t i = 0; i < p.members; ++i) {
      const int64_t cell = p.cell(set, i);
      coefficient(3)[cell] = static_cast<A>(invstd * weight_[static_cast<size_t>(cell % p.total_channels)]);
      coefficient(4)[cell] = static_cast<A>(by_x);
      coefficient(5)[cell] = static_cast<A>(by_one - by_x * rest);
    }
  }
  void gradient(Kernel kernel, int64_t matrix, int64_t k, int64_t worker, const S* dy, S* dx, S* dz) const {
    Piece at = piece(matrix, k);
    at.grad = dy + offset(matrix, k);
    at.y = dx + offset(matrix, k);
    if (dz != nullptr) at.dz_copy = dz + offset(matrix, k);
    at.stream = streams();
    kernel(at, nullptr, scratch(worker));
  }
  // [C] in the compute type: the cells' sums over the images, first or second.
  Tensor over_images(int64_t which) const {
    Tensor total = empty_plain<A>({p.total_channels}, op);
    const double* const of_cells = cells_.as<double>() + which * p.cells();
    for (int64_t c = 0; c < p.total_channels; ++c) {
      double sum = 0;
      for (int64_t cell = c; cell < p.cells(); cell += p.total_channels) sum += of_cells[cell];
      mutable_data<A>(total)[c] = static_cast<A>(sum);
    }
    return total;
  }

  const std::vector<int64_t> sizes;
  const Layout5 layout;
  const Partition p;

 private:
  const Arguments& arguments_;
  const Tensor x_;
  const S* const x_data_;  // asking a tensor takes as long as a short run of voxels
  std::optional<Tensor> residual_;
  const S* residual_data_ = nullptr;
  const std::vector<double> weight_, bias_;
  const int64_t scratch_step_;
  const memory::Scratch scratch_, coefficients_, results_, cells_;

  void* scratch(int64_t worker) const { return scratch_.as<char>() + worker * scratch_step_; }
  A* coefficient(int64_t which) const { return coefficients_.as<A>() + which * p.cells(); }
  int64_t offset(int64_t matrix, int64_t k) const { return matrix * p.elements + k * p.piece; }
  // [2][channels of the matrix]
  double* results(int64_t matrix, int64_t k) const {
    return results_.as<double>() + (matrix * p.pieces + k) * 2 * p.channels;
  }
  // Larger results have mostly left the cache by the time they are read.
  bool streams() const { return numel(sizes) * static_cast<int64_t>(sizeof(S)) >= int64_t{32} << 20; }

  Piece piece(int64_t matrix, int64_t k) const {
    Piece at{};
    at.channels = p.channels;
    at.period = p.period;
    at.elements = p.size_of(k);
    at.x = x_data_ + offset(matrix, k);
    if (residual_) at.residual = residual_data_ + offset(matrix, k);
    const int64_t cell = matrix * p.channels;
    at.center = coefficient(0) + cell;
    at.scale = coefficient(1) + cell;
    at.shift = coefficient(2) + cell;
    at.dz_scale = coefficient(3) + cell;
    at.x_scale = coefficient(4) + cell;
    at.constant = coefficient(5) + cell;
    at.activation = arguments_.activation;
    at.negative_slope = arguments_.negative_slope;
    return at;
  }

  void join_moments(int64_t cell, double& mean, double& square) const {
    const double* const first = results(cell / p.channels, 0) + cell % p.channels;
    double sum = 0;
    for (int64_t k = 0; k < p.pieces; ++k) {
      sum += first[k * 2 * p.channels] * static_cast<double>(p.size_of(k) / p.channels);
    }
    mean = sum / static_cast<double>(p.values());
    square = 0;
    for (int64_t k = 0; k < p.pieces; ++k) {
      const double difference = first[k * 2 * p.channels] - mean;
      square += first[(k * 2 + 1) * p.channels] +
                difference * difference * static_cast<double>(p.size_of(k) / p.channels);
    }
  }
  void join_sums(int64_t cell, double& sum, double& product) const {
    const double* const first = results(cell / p.channels, 0) + cell % p.channels;
    sum = product = 0;
    for (int64_t k = 0; k < p.pieces; ++k) {
      sum += first[k * 2 * p.channels];
      product += first[(k * 2 + 1) * p.channels];
    }
  }
};

// mean and variance: [1 or N, groups] in float64.
template <class S>
std::tuple<Tensor, Tensor, Tensor> forward_as(const Tensor& x, int64_t groups, bool per_image,
                                              const Arguments& arguments) {
  const auto sizes = sizes_of(x);
  Tensor y = empty_volume<S>(sizes, layout_of(x), op);
  const std::vector<int64_t> sets{per_image ? sizes[0] : 1, groups};
  Tensor mean = empty_plain<double>(sets, op), variance = empty_plain<double>(sets, op);
  auto* const means = mutable_data<double>(mean);
  auto* const variances = mutable_data<double>(variance);
  if (x.numel() == 0) {
    std::fill_n(means, numel(sets), std::numeric_limits<double>::quiet_NaN());
    std::fill_n(variances, numel(sets), std::numeric_limits<double>::quiet_NaN());
    return {y, mean, variance};
  }
  const Call<S> call(x, groups, per_image, arguments);
  const Kernel moments = kernels<S>().moments.best(), apply = kernels<S>().apply.best();
  S* const result = mutable_data<S>(y);
  run(
      call.p, [&](int64_t matrix, int64_t k, int64_t worker) { call.moments(moments, matrix, k, worker); },
      [&](int64_t set) {
        call.finish_moments(set, means, variances);
        call.finish_coefficients(set, means, variances);
      },
      [&](int64_t matrix, int64_t k, int64_t worker) { call.apply(apply, matrix, k, worker, result); });
  return {y, mean, variance};
}

// Whether each image has statistics of its own. With one image that is the same as having them in common.
bool of_images(const Tensor& x, const Tensor& mean) { return mean.size(0) == x.size(0); }

template <class S>
Tensor apply_as(const Tensor& x, const Tensor& mean, const Tensor& variance, const Arguments& arguments) {
  Tensor y = empty_volume<S>(sizes_of(x), layout_of(x), op);
  if (x.numel() == 0) return y;
  const Call<S> call(x, mean.size(1), of_images(x, mean), arguments);
  const Kernel apply = kernels<S>().apply.best();
  const double *const means = data<double>(mean), *const variances = data<double>(variance);
  S* const result = mutable_data<S>(y);
  run(
      call.p, [](int64_t, int64_t, int64_t) {},
      [&](int64_t set) { call.finish_coefficients(set, means, variances); },
      [&](int64_t matrix, int64_t k, int64_t worker) { call.apply(apply, matrix, k, worker, result); });
  return y;
}

// dx, dweight [C], dbias [C], and dresidual, [0] where it is not wanted.
template <class S>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward_as(const Tensor& grad, const Tensor& x,
                                                       const Tensor& mean, const Tensor& variance,
                                                       const Arguments& arguments, bool constant,
                                                       bool residual_gradient) {
  const auto sizes = sizes_of(x);
  const Layout5 layout = layout_of(x);
  Tensor dx = empty_volume<S>(sizes, layout, op);
  std::optional<Tensor> dz;
  if (residual_gradient) dz = empty_volume<S>(sizes, layout, op);
  const Tensor none = empty_plain<S>({0}, op);
  if (x.numel() == 0) {
    Tensor zero = empty_plain<compute_t<S>>({sizes[1]}, op);
    std::fill_n(mutable_data<compute_t<S>>(zero), sizes[1], compute_t<S>{0});
    Tensor another = empty_plain<compute_t<S>>({sizes[1]}, op);
    std::fill_n(mutable_data<compute_t<S>>(another), sizes[1], compute_t<S>{0});
    return {dx, zero, another, dz.value_or(none)};
  }
  const Tensor dy = to_layout(grad, layout, op);
  const Call<S> call(x, mean.size(1), of_images(x, mean), arguments);
  const Kernel sums = kernels<S>().gradient_sums.best(), gradient = kernels<S>().gradient.best();
  const double *const means = data<double>(mean), *const variances = data<double>(variance);
  const S* const from = data<S>(dy);
  S *const to = mutable_data<S>(dx), *const copy = dz ? mutable_data<S>(*dz) : nullptr;
  for (int64_t set = 0; set < call.p.sets; ++set) call.finish_coefficients(set, means, variances);
  run(
      call.p,
      [&](int64_t matrix, int64_t k, int64_t worker) { call.gradient_sums(sums, matrix, k, worker, from); },
      [&](int64_t set) { call.finish_gradient(set, means, variances, constant); },
      [&](int64_t matrix, int64_t k, int64_t worker) {
        call.gradient(gradient, matrix, k, worker, from, to, copy);
      });
  return {dx, call.over_images(1), call.over_images(0), dz.value_or(none)};
}

void check_volume(const Tensor& x, int64_t groups) {
  VOLNET_CHECK(x.dim() == 5, op, ": x must be [N, C, D, H, W], got ", shape_text(sizes_of(x)));
  VOLNET_CHECK(groups > 0 && x.size(1) % groups == 0, op, ": ", x.size(1), " channels cannot be split into ",
               groups, " groups");
}

void check_like(const Tensor& x, const std::optional<Tensor>& other, const char* name) {
  VOLNET_CHECK(!other || (sizes_of(*other) == sizes_of(x) && other->scalar_type() == x.scalar_type()), op,
               ": ", name, " must be like x, ", shape_text(sizes_of(x)));
}

// Statistics as every operator here returns them.
Tensor checked_statistics(const Tensor& x, const Tensor& value) {
  VOLNET_CHECK(value.dim() == 2 && value.scalar_type() == ScalarType::Double &&
                   (value.size(0) == 1 || value.size(0) == x.size(0)),
               op, ": mean and variance must be [1 or ", x.size(0), ", groups] in float64");
  check_volume(x, value.size(1));
  VOLNET_CHECK(value.size(0) == x.size(0) || value.size(1) == x.size(1), op,
               ": groups of channels have statistics for each image");
  return torch::stable::contiguous(value);
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, std::optional<Tensor> weight,
                                           std::optional<Tensor> bias, std::optional<Tensor> residual,
                                           int64_t groups, bool per_image, double eps, std::string activation,
                                           double negative_slope) {
  check_volume(x, groups);
  VOLNET_CHECK(per_image || groups == x.size(1), op, ": groups of channels have statistics for each image");
  check_like(x, residual, "residual");
  const Arguments arguments{weight, bias, residual, eps, activation_of(activation, op), negative_slope};
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return forward_as<float>(x, groups, per_image, arguments);
    case ScalarType::BFloat16:
      return forward_as<bfloat16>(x, groups, per_image, arguments);
    case ScalarType::Double:
      return forward_as<double>(x, groups, per_image, arguments);
    default:
      VOLNET_CHECK(false, op, ": x must be float32, float64 or bfloat16");
  }
}

Tensor apply(const Tensor& x, const Tensor& mean, const Tensor& variance, std::optional<Tensor> weight,
             std::optional<Tensor> bias, std::optional<Tensor> residual, double eps, std::string activation,
             double negative_slope) {
  const Tensor means = checked_statistics(x, mean), variances = checked_statistics(x, variance);
  check_like(x, residual, "residual");
  const Arguments arguments{weight, bias, residual, eps, activation_of(activation, op), negative_slope};
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return apply_as<float>(x, means, variances, arguments);
    case ScalarType::BFloat16:
      return apply_as<bfloat16>(x, means, variances, arguments);
    case ScalarType::Double:
      return apply_as<double>(x, means, variances, arguments);
    default:
      VOLNET_CHECK(false, op, ": x must be float32, float64 or bfloat16");
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& x, const Tensor& mean,
                                                    const Tensor& variance, std::optional<Tensor> weight,
                                                    std::optional<Tensor> bias,
                                                    std::optional<Tensor> residual, double eps,
                                                    std::string activation, double negative_slope,
                                                    bool constant, bool residual_gradient) {
  const Tensor means = checked_statistics(x, mean), variances = checked_statistics(x, variance);
  check_like(x, grad, "the gradient");
  check_like(x, residual, "residual");
  const Arguments arguments{weight, bias, residual, eps, activation_of(activation, op), negative_slope};
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return backward_as<float>(grad, x, means, variances, arguments, constant, residual_gradient);
    case ScalarType::BFloat16:
      return backward_as<bfloat16>(grad, x, means, variances, arguments, constant, residual_gradient);
    case ScalarType::Double:
      return backward_as<double>(grad, x, means, variances, arguments, constant, residual_gradient);
    default:
      VOLNET_CHECK(false, op, ": x must be float32, float64 or bfloat16");
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) {
  m.def(
      "norm(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, int groups, bool per_image, float eps, "
      "str activation, float negative_slope) -> (Tensor, Tensor, Tensor)");
  m.def(
      "_norm_apply(Tensor x, Tensor mean, Tensor variance, Tensor? weight, Tensor? bias, Tensor? residual, "
      "float eps, str activation, float negative_slope) -> Tensor");
  m.def(
      "_norm_backward(Tensor grad, Tensor x, Tensor mean, Tensor variance, Tensor? weight, Tensor? bias, "
      "Tensor? residual, float eps, str activation, float negative_slope, bool constant, "
      "bool residual_gradient) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) {
  m.impl("norm", TORCH_BOX(&forward));
  m.impl("_norm_apply", TORCH_BOX(&apply));
  m.impl("_norm_backward", TORCH_BOX(&backward));
}

}  // namespace volnet

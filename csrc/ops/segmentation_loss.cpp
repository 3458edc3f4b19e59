// torch.ops.volnet.segmentation_sums and voxel_losses, and their gradients.
#include "kernels/segmentation_loss/segmentation_loss.h"

#include "ops/along.h"
#include "ops/dtypes.h"

namespace volnet {
namespace {

using segmentation_loss::Element;
using segmentation_loss::Penalty;
using segmentation_loss::rows_of_sums;
using segmentation_loss::Target;
using segmentation_loss::WrongLabel;

constexpr const char* op = "segmentation_loss";

// Results larger than this have mostly left the caches by the time they are read.
constexpr int64_t stream_from = int64_t{32} << 20;

// Voxels that are summed up in one piece: as few as are worth it, so that one image of 96^3 keeps a hundred
// cores busy.
constexpr int64_t least_run = 2048, most_run = 8192;

Element element_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte:
    case ScalarType::Bool:
      return Element::uint8;
    case ScalarType::Short:
      return Element::int16;
    case ScalarType::Int:
      return Element::int32;
    case ScalarType::Long:
      return Element::int64;
    case ScalarType::Float:
      return Element::float32;
    case ScalarType::Double:
      return Element::float64;
    default:
      VOLNET_CHECK(dtype == ScalarType::BFloat16, op,
                   ": the target must be uint8, int16, int32, int64, float32, ", "float64 or bfloat16, got ",
                   type_name(dtype));
      return Element::bfloat16;
  }
}

// Logits [N, C, D, H, W] of one layout, and a target of one number a voxel or one a logit, in plain layout.
class Images {
 public:
  Tensor x;
  int64_t count, channels, voxels;
  Layout5 layout;
  bool rows;  // the channels of a voxel lie side by side

  Images(const Tensor& logits, const Tensor& target, std::optional<int64_t> ignore_index, int64_t first)
      : x(logits), target_(torch::stable::contiguous(target)) {
    VOLNET_CHECK(x.dim() == 5, op, ": logits must be [N, C, D, H, W], got ", shape_text(sizes_of(x)));
    layout = layout_of(x);
    x = to_layout(x, layout, op);
    count = x.size(0);
    channels = x.size(1);
    voxels = x.size(2) * x.size(3) * x.size(4);
    rows = layout == Layout5::channels_last && channels > 1;
    std::vector<int64_t> of_labels = sizes_of(x);
    of_labels.erase(of_labels.begin() + 1);
    planes_ = target.dim() == 5;
    VOLNET_CHECK(sizes_of(target) == (planes_ ? sizes_of(x) : of_labels), op, ": a target ",
                 shape_text(sizes_of(target)), " does not belong to logits ", shape_text(sizes_of(x)));
    element_ = element_of(target.scalar_type());
    const bool whole = element_ <= Element::int64;
    VOLNET_CHECK(planes_ || whole, op, ": labels must be integers, got ", type_name(target.scalar_type()));
    first_ = first;
    ignored_ = ignore_index;
  }

  Target target(int64_t image, int64_t voxel) const {
    const int64_t at = image * voxels * (planes_ ? channels : 1) + voxel;
    const auto size = static_cast<int64_t>(target_.element_size());
    return {static_cast<const char*>(target_.const_data_ptr()) + at * size,
            element_,
            planes_,
            voxels,
            first_,
            ignored_.has_value(),
            ignored_.value_or(0)};
  }

  // Pieces do not cross images, and are the same whatever the number of threads.
  int64_t run() const {
    constexpr int64_t multiple = segmentation_loss::block;
    const int64_t run = std::clamp(piece_along / std::max<int64_t>(channels, 1), least_run, most_run);
    return (run + multiple - 1) / multiple * multiple;
  }
  int64_t runs() const { return (voxels + run() - 1) / run(); }
  int64_t pieces() const { return channels == 0 ? 0 : count * runs(); }

  // f(image, begin, end, x, stride, scratch) for the runs of voxels of a piece, where voxel `begin` is the
  // first of x [channels, stride]. Rows are turned into channels a few at a time.
  template <class T, class F>
  void for_runs(int64_t piece, char* scratch, const Turn<T>& turn, const F& f) const {
    const int64_t image = piece / runs(), begin = piece % runs() * run(),
                  end = std::min(begin + run(), voxels);
    const T* const from = data<T>(x) + image * channels * voxels;
    if (!rows) {
      f(image, begin, end, from + begin, voxels, scratch);
      return;
    }
    T* const turned = reinterpret_cast<T*>(scratch);
    const int64_t step = Turn<T>::rows_of(along());
    for (int64_t v = begin; v < end; v += step) {
      const int64_t n = std::min(step, end - v);
      turn.to_channels(from + v * channels, turned, n);
      f(image, v, v + n, turned, n, scratch + turn.bytes());
    }
  }
  Along along() const { return {count * voxels, std::max<int64_t>(channels, 1), 1}; }
  template <class T>
  int64_t scratch_bytes() const {
    const int64_t turned = rows ? Turn<T>(along(), false).bytes() : 0;
    return turned + segmentation_loss::scratch_of(channels) * static_cast<int64_t>(sizeof(compute_t<T>));
  }

  void check(const std::vector<WrongLabel>& found) const {
    for (size_t piece = 0; piece < found.size(); ++piece) {
      if (!found[piece].found) continue;
      const int64_t voxel = found[piece].voxel, h = x.size(3), w = x.size(4);
      const std::string ignored = ignored_ ? " and is not ignore_index " + std::to_string(*ignored_) : "";
      VOLNET_CHECK(false, "label ", found[piece].label, " of image ", static_cast<int64_t>(piece) / runs(),
                   " at voxel ", shape_text({voxel / (h * w), voxel / w % h, voxel % w}), " is not in [0, ",
                   channels + first_, ")", ignored);
    }
  }

 private:
  Tensor target_;
  Element element_;
  bool planes_;
  int64_t first_;
  std::optional<int64_t> ignored_;
};

// The label's voxel in its image, from where a run of it begins.
void shift(WrongLabel& wrong, bool was_found, int64_t begin) {
  if (wrong.found && !was_found) wrong.voxel += begin;
}

template <class T>
void sum_up(const Images& images, const Penalty& penalty, double* sums) {
  const int64_t pieces = images.pieces(), each = rows_of_sums * images.channels;
  std::vector<double> partial(static_cast<size_t>(pieces * each));
  std::vector<WrongLabel> wrong(static_cast<size_t>(pieces));
  const auto kernel =
      best_for<T>(segmentation_loss::sums_f32, segmentation_loss::sums_bf16, segmentation_loss::sums_f64);
  const Turn<T> turn(images.along(), false);
  for_each_with_scratch(pieces, op, images.scratch_bytes<T>(), [&](int64_t piece, char* scratch) {
    images.for_runs<T>(
        piece, scratch, turn,
        [&](int64_t image, int64_t begin, int64_t end, const T* x, int64_t stride, char* rest) {
          WrongLabel& label = wrong[static_cast<size_t>(piece)];
          const bool was_found = label.found;
          kernel({x, images.channels, stride, images.target(image, begin), penalty,
                  partial.data() + piece * each, &label},
                 0, end - begin, rest);
          shift(label, was_found, begin);
        });
  });
  images.check(wrong);
  std::fill_n(sums, images.count * each, 0.0);
  for (int64_t piece = 0; piece < pieces; ++piece) {
    double* const to = sums + piece / images.runs() * each;
    for (int64_t i = 0; i < each; ++i) to[i] += partial[static_cast<size_t>(piece * each + i)];
  }
}

Tensor segmentation_sums(const Tensor& logits, const Tensor& target, std::optional<int64_t> ignore_index,
                         bool sigmoid, double gamma, int64_t first) {
  const Images images(logits, target, ignore_index, first);
  Tensor sums = empty_plain<double>({images.count, rows_of_sums, images.channels}, op);
  with_floating_type(logits.scalar_type(), op, "logits", [&](auto type) {
    sum_up<decltype(type)>(images, {sigmoid, gamma}, mutable_data<double>(sums));
    return 0;
  });
  return sums;
}

// coefficients: [N, 4, C] or [4, C], with an image's at a step of `step`; grad: [N, D, H, W] or none.
template <class T>
Tensor gradient(const Images& images, const Penalty& penalty, const std::vector<compute_t<T>>& coefficients,
                int64_t step, const compute_t<T>* grad) {
  constexpr auto size = static_cast<int64_t>(sizeof(T));
  Tensor dx = empty_volume<T>(sizes_of(images.x), images.layout, op);
  if (dx.numel() == 0) return dx;
  T* const to = mutable_data<T>(dx);
  const bool large = dx.numel() * size >= stream_from;
  const bool stream = large && (images.rows || images.voxels * size % 64 == 0);
  const auto kernel = best_for<T>(segmentation_loss::backward_f32, segmentation_loss::backward_bf16,
                                  segmentation_loss::backward_f64);
  const Turn<T> turn(images.along(), stream);
  for_each_with_scratch(images.pieces(), op, images.scratch_bytes<T>(), [&](int64_t piece, char* scratch) {
    images.for_runs<T>(
        piece, scratch, turn,
        [&](int64_t image, int64_t begin, int64_t end, const T* x, int64_t stride, char* rest) {
          T* const at = to + image * images.channels * images.voxels;
          T* const result = images.rows ? const_cast<T*>(x) : at + begin;
          kernel({x, result, images.channels, stride, images.target(image, begin), penalty,
                  coefficients.data() + image * step,
                  grad == nullptr ? nullptr : grad + image * images.voxels + begin, stream && !images.rows},
                 0, end - begin, rest);
          if (images.rows) turn.to_rows(result, at + begin * images.channels, end - begin);
        });
  });
  return dx;
}

template <class A>
std::vector<A> numbers(const Tensor& from) {
  const Tensor dense = torch::stable::contiguous(from);
  const double* const values = data<double>(dense);
  std::vector<A> result(static_cast<size_t>(dense.numel()));
  for (size_t i = 0; i < result.size(); ++i) result[i] = static_cast<A>(values[i]);
  return result;
}

Tensor segmentation_sums_backward(const Tensor& grad, const Tensor& logits, const Tensor& target,
                                  std::optional<int64_t> ignore_index, bool sigmoid, double gamma,
                                  int64_t first) {
  const Images images(logits, target, ignore_index, first);
  VOLNET_CHECK(grad.scalar_type() == ScalarType::Double &&
                   sizes_of(grad) == std::vector<int64_t>({images.count, rows_of_sums, images.channels}),
               op, " backward: the gradient ", shape_text(sizes_of(grad)), " does not belong to logits ",
               shape_text(sizes_of(logits)));
  return with_floating_type(logits.scalar_type(), op, "logits", [&](auto type) {
    using T = decltype(type);
    const auto all = numbers<compute_t<T>>(grad);
    // Those of p, t p, hit and miss; t and 1 do not depend on the logits.
    std::vector<compute_t<T>> coefficients;
    for (int64_t n = 0; n < images.count; ++n) {
      for (const int64_t row : {0, 1, 3, 4}) {
        const auto from = all.begin() + (n * rows_of_sums + row) * images.channels;
        coefficients.insert(coefficients.end(), from, from + images.channels);
      }
    }
    return gradient<T>(images, {sigmoid, gamma}, coefficients, 4 * images.channels, nullptr);
  });
}

void check_weights(const Tensor& weights, const Images& images) {
  VOLNET_CHECK(weights.scalar_type() == ScalarType::Double &&
                   sizes_of(weights) == std::vector<int64_t>({2, images.channels}),
               op, ": weights must be [2, ", images.channels, "] in float64, got ",
               shape_text(sizes_of(weights)));
}

Tensor voxel_losses(const Tensor& logits, const Tensor& target, const Tensor& weights,
                    std::optional<int64_t> ignore_index, bool sigmoid, double gamma, int64_t first) {
  const Images images(logits, target, ignore_index, first);
  check_weights(weights, images);
  return with_floating_type(logits.scalar_type(), op, "logits", [&](auto type) {
    using T = decltype(type);
    using A = compute_t<T>;
    const Tensor& x = images.x;
    Tensor y = empty_plain<A>({x.size(0), x.size(2), x.size(3), x.size(4)}, op);
    A* const to = mutable_data<A>(y);
    if (images.channels == 0) std::fill_n(to, y.numel(), A{0});
    const auto coefficients = numbers<A>(weights);
    std::vector<WrongLabel> wrong(static_cast<size_t>(images.pieces()));
    const auto kernel = best_for<T>(segmentation_loss::voxels_f32, segmentation_loss::voxels_bf16,
                                    segmentation_loss::voxels_f64);
    const Turn<T> turn(images.along(), false);
    for_each_with_scratch(images.pieces(), op, images.scratch_bytes<T>(), [&](int64_t piece, char* scratch) {
      images.for_runs<T>(
          piece, scratch, turn,
          [&](int64_t image, int64_t begin, int64_t end, const T* x, int64_t stride, char* rest) {
            WrongLabel& label = wrong[static_cast<size_t>(piece)];
            const bool was_found = label.found;
            kernel({x, images.channels, stride, images.target(image, begin), Penalty{sigmoid, gamma},
                    coefficients.data(), to + image * images.voxels + begin, &label},
                   0, end - begin, rest);
            shift(label, was_found, begin);
          });
    });
    images.check(wrong);
    return y;
  });
}

Tensor voxel_losses_backward(const Tensor& grad, const Tensor& logits, const Tensor& target,
                             const Tensor& weights, std::optional<int64_t> ignore_index, bool sigmoid,
                             double gamma, int64_t first) {
  const Images images(logits, target, ignore_index, first);
  check_weights(weights, images);
  return with_floating_type(logits.scalar_type(), op, "logits", [&](auto type) {
    using T = decltype(type);
    using A = compute_t<T>;
    VOLNET_CHECK(grad.scalar_type() == ScalarTypeOf<A>::value && grad.numel() == images.count * images.voxels,
                 op, " backward: the gradient ", shape_text(sizes_of(grad)), " does not belong to logits ",
                 shape_text(sizes_of(logits)));
    const Tensor dy = torch::stable::contiguous(grad);
    std::vector<A> coefficients(static_cast<size_t>(2 * images.channels), A{0});
    const auto penalties = numbers<A>(weights);
    coefficients.insert(coefficients.end(), penalties.begin(), penalties.end());
    return gradient<T>(images, {sigmoid, gamma}, coefficients, 0, data<A>(dy));
  });
}

}  // namespace
}  // namespace volnet

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) {
  m.def(
      "segmentation_sums(Tensor logits, Tensor target, int? ignore_index, bool sigmoid, float gamma, int "
      "first) "
      "-> Tensor");
  m.def(
      "_segmentation_sums_backward(Tensor grad, Tensor logits, Tensor target, int? ignore_index, bool "
      "sigmoid, "
      "float gamma, int first) -> Tensor");
  m.def(
      "voxel_losses(Tensor logits, Tensor target, Tensor weights, int? ignore_index, bool sigmoid, float "
      "gamma, "
      "int first) -> Tensor");
  m.def(
      "_voxel_losses_backward(Tensor grad, Tensor logits, Tensor target, Tensor weights, int? ignore_index, "
      "bool sigmoid, float gamma, int first) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) {
  m.impl("segmentation_sums", TORCH_BOX(&volnet::segmentation_sums));
  m.impl("_segmentation_sums_backward", TORCH_BOX(&volnet::segmentation_sums_backward));
  m.impl("voxel_losses", TORCH_BOX(&volnet::voxel_losses));
  m.impl("_voxel_losses_backward", TORCH_BOX(&volnet::voxel_losses_backward));
}

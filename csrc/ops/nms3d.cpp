#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/nms3d/nms3d.h"
#include "ops/boxes.h"

namespace volnet {
namespace {

// The largest T that is not above the threshold: iou > threshold says the same of every T with either.
template <class T>
T round_down(double threshold) {
  const T rounded = static_cast<T>(threshold);
  return static_cast<double>(rounded) > threshold ? std::nextafter(rounded, T(0)) : rounded;
}

// order[rank] = index by decreasing score, equal scores by increasing index.
void order_by_score(const Tensor& scores, int64_t* order, uint64_t* keys, uint64_t* key_scratch,
                    int64_t* order_scratch, const char* op) {
  const int64_t count = scores.numel();
  with_floating_type(scores.scalar_type(), op, "scores", [&](auto type) {
    const auto* values = data<decltype(type)>(scores);
    for (int64_t i = 0; i < count; ++i) {
      const auto score = to_float(values[i]);
      VOLNET_CHECK(!std::isnan(score), op, ": scores must not be NaN, got scores[", i, "] = ", score);
      keys[i] = nms3d::decreasing_key(score);
    }
  });
  std::iota(order, order + count, int64_t{0});
  nms3d::stable_order(keys, order, count, key_scratch, order_scratch);
}

template <class T>
Tensor run(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& labels,
           double iou_threshold, const char* op) {
  using A = compute_t<T>;
  const int64_t count = boxes.size(0);
  const memory::Scratch words(5 * count * static_cast<int64_t>(sizeof(int64_t)), op);
  auto* order = words.as<int64_t>();  // [rank] -> index, by score
  int64_t* grouped = order + count;   // [place] -> rank, by label and then by rank
  int64_t* order_scratch = grouped + count;
  auto* keys = reinterpret_cast<uint64_t*>(order_scratch + count);
  uint64_t* key_scratch = keys + count;
  order_by_score(scores, order, keys, key_scratch, order_scratch, op);

  std::vector<int64_t> group_begin{0};  // places
  if (labels) {
    const auto* label = data<int64_t>(*labels);
    std::iota(grouped, grouped + count, int64_t{0});
    for (int64_t rank = 0; rank < count; ++rank) keys[rank] = static_cast<uint64_t>(label[order[rank]]);
    nms3d::stable_order(keys, grouped, count, key_scratch, order_scratch);
    for (int64_t place = 1; place < count; ++place) {
      if (label[order[grouped[place]]] != label[order[grouped[place - 1]]]) group_begin.push_back(place);
    }
  }
  const auto groups = static_cast<int64_t>(group_begin.size());
  group_begin.push_back(count);

  const int64_t box_bytes = 6 * count * static_cast<int64_t>(sizeof(A));
  const memory::Scratch read(box_bytes, op), sorted_scratch(box_bytes, op);
  read_valid_boxes(data<T>(boxes), count, read.as<A>(), op, "boxes");
  auto* sorted = sorted_scratch.as<A>();
  for (int64_t place = 0; place < count; ++place) {
    std::copy_n(read.as<A>() + 6 * order[labels ? grouped[place] : place], 6, sorted + 6 * place);
  }

  std::vector<int64_t> scratch_begin{0};
  for (int64_t g = 0; g < groups; ++g) {
    scratch_begin.push_back(scratch_begin.back() +
                            nms3d::scratch_bytes<A>(group_begin[g + 1] - group_begin[g]));
  }
  const memory::Scratch group_scratch(scratch_begin.back(), op), keep_scratch(count, op);
  auto* keep = keep_scratch.as<uint8_t>();
  const auto suppress = [] {
    if constexpr (std::is_same_v<A, double>) {
      return nms3d::suppress_f64.best();
    } else {
      return nms3d::suppress_f32.best();
    }
  }();
  for_each_piece(groups, [&](int64_t g, int64_t) {
    const int64_t begin = group_begin[g];
    suppress({sorted + 6 * begin, group_begin[g + 1] - begin, round_down<A>(iou_threshold), keep + begin,
              group_scratch.as<char>() + scratch_begin[g]});
  });

  // By score again.
  const uint8_t* keep_by_rank = keep;
  if (labels) {
    auto* by_rank = reinterpret_cast<uint8_t*>(keys);
    for (int64_t place = 0; place < count; ++place) by_rank[grouped[place]] = keep[place];
    keep_by_rank = by_rank;
  }
  const int64_t kept = std::accumulate(keep_by_rank, keep_by_rank + count, int64_t{0});
  Tensor result = empty_strided({kept}, {1}, ScalarType::Long, sizeof(int64_t), op);
  auto* out = mutable_data<int64_t>(result);
  for (int64_t rank = 0; rank < count; ++rank) {
    if (keep_by_rank[rank]) *out++ = order[rank];
  }
  return result;
}

Tensor suppress(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& labels,
                double iou_threshold, const char* op) {
  VOLNET_CHECK(boxes.dim() == 2 && boxes.size(1) == 6, op, ": boxes must be [K, 6], got ",
               shape_text(sizes_of(boxes)));
  const auto check_length = [&](const Tensor& x, const char* name) {
    VOLNET_CHECK(x.dim() == 1 && x.size(0) == boxes.size(0), op, ": ", name, " must be [", boxes.size(0),
                 "], one for each box, got ", shape_text(sizes_of(x)));
  };
  check_length(scores, "scores");
  if (labels) {
    check_length(*labels, "labels");
    VOLNET_CHECK(labels->scalar_type() == ScalarType::Long, op, ": labels must be int64, got ",
                 type_name(labels->scalar_type()));
  }
  VOLNET_CHECK(iou_threshold >= 0 && iou_threshold <= 1, op, ": iou_threshold must be from 0 to 1, got ",
               iou_threshold);
  std::optional<Tensor> dense_labels;
  if (labels) dense_labels = torch::stable::contiguous(*labels);
  return with_floating_type(boxes.scalar_type(), op, "boxes", [&](auto type) {
    return run<decltype(type)>(torch::stable::contiguous(boxes), torch::stable::contiguous(scores),
                               dense_labels, iou_threshold, op);
  });
}

Tensor nms3d_op(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  return suppress(boxes, scores, std::nullopt, iou_threshold, "nms3d");
}

Tensor batched_nms3d_op(const Tensor& boxes, const Tensor& scores, const Tensor& labels,
                        double iou_threshold) {
  return suppress(boxes, scores, labels, iou_threshold, "batched_nms3d");
}

}  // namespace
}  // namespace volnet

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) {
  m.def("nms3d(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor");
  m.def("batched_nms3d(Tensor boxes, Tensor scores, Tensor labels, float iou_threshold) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) {
  m.impl("nms3d", TORCH_BOX(&volnet::nms3d_op));
  m.impl("batched_nms3d", TORCH_BOX(&volnet::batched_nms3d_op));
}

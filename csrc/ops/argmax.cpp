// torch.ops.volnet.argmax.
#include "kernels/argmax/argmax.h"

#include <limits>

#include "ops/along.h"
#include "ops/dtypes.h"

namespace volnet {
namespace {

using argmax::Label;

constexpr const char* op = "argmax";

// From this many channels on, next to each other, it pays to find the greatest of a vector's lanes.
constexpr int64_t rows_from = 256;

struct LabelType {
  Label label;
  int64_t size, largest;
};

LabelType label_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte:
      return {Label::uint8, 1, std::numeric_limits<uint8_t>::max()};
    case ScalarType::Short:
      return {Label::int16, 2, std::numeric_limits<int16_t>::max()};
    case ScalarType::Int:
      return {Label::int32, 4, std::numeric_limits<int32_t>::max()};
    default:
      VOLNET_CHECK(dtype == ScalarType::Long, op, ": dtype must be uint8, int16, int32 or int64, got ",
                   type_name(dtype));
      return {Label::int64, 8, std::numeric_limits<int32_t>::max()};  // kernels count in int32
  }
}

// For labels in the order that their voxels have in x, without the axis or with one label on it.
Tensor empty_labels(const Tensor& x, int64_t axis, bool keepdim, ScalarType dtype, int64_t label_size) {
  std::vector<int64_t> sizes, strides;
  for (int64_t i = 0; i < x.dim(); ++i) {
    if (i == axis && !keepdim) continue;
    sizes.push_back(i == axis ? 1 : x.size(i));
    strides.push_back(i != axis && x.stride(i) > x.stride(axis) ? x.stride(i) / x.size(axis) : x.stride(i));
  }
  return empty_strided(sizes, strides, dtype, label_size, op);
}

template <class T>
void find(const Tensor& x, const Tensor& labels, const Along& at, const LabelType& type) {
  const T* const from = data<T>(x);
  char* const to = static_cast<char*>(labels.mutable_data_ptr());
  if (at.inner == 1 && at.count >= rows_from) {
    const auto kernel = best_for<T>(argmax::find_rows_f32, argmax::find_rows_bf16, argmax::find_rows_f64);
    for_rows(at, op, 0, [&](int64_t begin, int64_t end, void*) {
      kernel({from, to, at.count, 1, type.label}, begin, end);
    });
    return;
  }
  const auto kernel = best_for<T>(argmax::find_f32, argmax::find_bf16, argmax::find_f64);
  if (at.inner > 1) {
    for_voxels(at, op, 0, [&](int64_t first, int64_t begin, int64_t end, void*) {
      kernel({from + first, to + first / at.count * type.size, at.count, at.inner, type.label}, begin, end);
    });
    return;
  }
  const Turn<T> turn(at, false);
  for_turned(at, op, turn.bytes(), [&](int64_t row, int64_t rows, char* scratch) {
    T* const turned = reinterpret_cast<T*>(scratch);
    turn.to_channels(from + row * at.count, turned, rows);
    kernel({turned, to + row * type.size, at.count, rows, type.label}, 0, rows);
  });
}

Tensor forward(const Tensor& input, int64_t dim, bool keepdim, ScalarType dtype) {
  VOLNET_CHECK(dim >= 0 && dim < input.dim(), op, ": dim ", dim, " is no axis of ",
               shape_text(sizes_of(input)));
  const LabelType type = label_of(dtype);
  const int64_t count = input.size(dim);
  VOLNET_CHECK(count > 0, op, ": axis ", dim, " of ", shape_text(sizes_of(input)), " is empty");
  VOLNET_CHECK(count - 1 <= type.largest, op, ": ", count, " channels do not fit ", type_name(dtype));
  const Tensor x = dense(input, op);
  Tensor labels = empty_labels(x, dim, keepdim, dtype, type.size);
  if (labels.numel() == 0) return labels;
  return with_floating_type(x.scalar_type(), op, "x", [&](auto element) {
    find<decltype(element)>(x, labels, along(x, dim), type);
    return labels;
  });
}

}  // namespace
}  // namespace volnet

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) {
  m.def("argmax(Tensor x, int dim, bool keepdim, ScalarType dtype) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) { m.impl("argmax", TORCH_BOX(&volnet::forward)); }

// torch.ops.volnet.softmax and _softmax_backward.
#include "kernels/softmax/softmax.h"

#include "ops/along.h"
#include "ops/dtypes.h"

namespace volnet {
namespace {

using softmax::Backward;
using softmax::Forward;

constexpr const char* op = "softmax";

// Results larger than this have mostly left the caches by the time they are read.
constexpr int64_t stream_from = int64_t{32} << 20;

// With fewer channels than this, next to each other, vectors of them would be mostly empty.
constexpr int64_t forward_rows_from = 16, backward_rows_from = 9;

bool streams(const Tensor& x, int64_t bytes_apart) {
  return x.numel() * static_cast<int64_t>(x.element_size()) >= stream_from && bytes_apart % 64 == 0;
}

template <class T>
void forward_into(const Tensor& x, const Tensor& y, const Along& at) {
  using A = compute_t<T>;
  constexpr auto size = static_cast<int64_t>(sizeof(T));
  const T* const from = data<T>(x);
  T* const to = mutable_data<T>(y);
  if (at.inner == 1 && at.count >= forward_rows_from) {
    const auto kernel =
        best_for<T>(softmax::forward_rows_f32, softmax::forward_rows_bf16, softmax::forward_rows_f64);
    const Forward params{from, to, at.count, 1, streams(y, at.count * size)};
    const int64_t scratch_bytes = softmax::scratch_of_rows(at.count) * static_cast<int64_t>(sizeof(A));
    for_rows(at, op, scratch_bytes,
             [&](int64_t begin, int64_t end, void* scratch) { kernel(params, begin, end, scratch); });
    return;
  }
  const auto kernel = best_for<T>(softmax::forward_f32, softmax::forward_bf16, softmax::forward_f64);
  const int64_t scratch_bytes = softmax::scratch_of(at.count) * static_cast<int64_t>(sizeof(A));
  if (at.inner > 1) {
    const bool stream = streams(y, at.inner * size);
    for_voxels(at, op, scratch_bytes, [&](int64_t first, int64_t begin, int64_t end, void* scratch) {
      kernel({from + first, to + first, at.count, at.inner, stream}, begin, end, scratch);
    });
    return;
  }
  const Turn<T> turn(at, streams(y, 0));
  for_turned(at, op, turn.bytes() + scratch_bytes, [&](int64_t row, int64_t rows, char* scratch) {
    T* const turned = reinterpret_cast<T*>(scratch);
    turn.to_channels(from + row * at.count, turned, rows);
    kernel({turned, turned, at.count, rows, false}, 0, rows, scratch + turn.bytes());
    turn.to_rows(turned, to + row * at.count, rows);
  });
}

template <class T>
void backward_into(const Tensor& grad, const Tensor& y, const Tensor& dx, const Along& at) {
  using A = compute_t<T>;
  constexpr auto size = static_cast<int64_t>(sizeof(T));
  const T *const dy = data<T>(grad), *const results = data<T>(y);
  T* const to = mutable_data<T>(dx);
  if (at.inner == 1 && at.count >= backward_rows_from) {
    const auto kernel =
        best_for<T>(softmax::backward_rows_f32, softmax::backward_rows_bf16, softmax::backward_rows_f64);
    const Backward params{dy, results, to, at.count, 1, streams(dx, at.count * size)};
    for_rows(at, op, 0,
             [&](int64_t begin, int64_t end, void* scratch) { kernel(params, begin, end, scratch); });
    return;
  }
  const auto kernel = best_for<T>(softmax::backward_f32, softmax::backward_bf16, softmax::backward_f64);
  const int64_t scratch_bytes = softmax::scratch_of(at.count) * static_cast<int64_t>(sizeof(A));
  if (at.inner > 1) {
    const bool stream = streams(dx, at.inner * size);
    for_voxels(at, op, scratch_bytes, [&](int64_t first, int64_t begin, int64_t end, void* scratch) {
      kernel({dy + first, results + first, to + first, at.count, at.inner, stream}, begin, end, scratch);
    });
    return;
  }
  const Turn<T> turn(at, streams(dx, 0));
  for_turned(at, op, 2 * turn.bytes() + scratch_bytes, [&](int64_t row, int64_t rows, char* scratch) {
    T* const turned_grad = reinterpret_cast<T*>(scratch);
    T* const turned = reinterpret_cast<T*>(scratch + turn.bytes());
    turn.to_channels(dy + row * at.count, turned_grad, rows);
    turn.to_channels(results + row * at.count, turned, rows);
    kernel({turned_grad, turned, turned, at.count, rows, false}, 0, rows, scratch + 2 * turn.bytes());
    turn.to_rows(turned, to + row * at.count, rows);
  });
}

int64_t checked_axis(const Tensor& x, int64_t dim) {
  VOLNET_CHECK(dim >= 0 && dim < x.dim(), op, ": dim ", dim, " is no axis of ", shape_text(sizes_of(x)));
  return dim;
}

Tensor forward(const Tensor& input, int64_t dim) {
  const int64_t axis = checked_axis(input, dim);
  const Tensor x = dense(input, op);
  return with_floating_type(x.scalar_type(), op, "x", [&](auto type) {
    using T = decltype(type);
    Tensor y = empty_like<T>(x, op);
    if (y.numel() > 0) forward_into<T>(x, y, along(x, axis));
    return y;
  });
}

Tensor backward(const Tensor& grad, const Tensor& result, int64_t dim) {
  const int64_t axis = checked_axis(result, dim);
  VOLNET_CHECK(sizes_of(grad) == sizes_of(result) && grad.scalar_type() == result.scalar_type(), op,
               " backward: the gradient ", shape_text(sizes_of(grad)), " does not belong to ",
               shape_text(sizes_of(result)));
  const Tensor y = dense(result, op), dy = in_order_of(grad, y, op);
  return with_floating_type(y.scalar_type(), op, "x", [&](auto type) {
    using T = decltype(type);
    Tensor dx = empty_like<T>(y, op);
    if (dx.numel() > 0) backward_into<T>(dy, y, dx, along(y, axis));
    return dx;
  });
}

}  // namespace
}  // namespace volnet

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) {
  m.def("softmax(Tensor x, int dim) -> Tensor");
  m.def("_softmax_backward(Tensor grad, Tensor result, int dim) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) {
  m.impl("softmax", TORCH_BOX(&volnet::forward));
  m.impl("_softmax_backward", TORCH_BOX(&volnet::backward));
}

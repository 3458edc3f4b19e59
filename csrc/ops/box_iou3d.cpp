#include "kernels/box_iou3d/box_iou3d.h"

#include "ops/boxes.h"

namespace volnet {
namespace {

using box_iou3d::row_multiple;

void check(const Tensor& a, const Tensor& b) {
  const auto check_boxes = [](const Tensor& x, const char* name) {
    VOLNET_CHECK(x.dim() == 2 && x.size(1) == 6, "box_iou3d: ", name, " must be [K, 6], got ",
                 shape_text(sizes_of(x)));
  };
  check_boxes(a, "a");
  check_boxes(b, "b");
  VOLNET_CHECK(a.scalar_type() == b.scalar_type(), "box_iou3d: a and b must have one dtype, got ",
               type_name(a.scalar_type()), " and ", type_name(b.scalar_type()));
}

// Boxes [count, 6] as a row for each coordinate and one for the volume, padded with zeros.
template <class A>
void to_rows(const A* boxes, int64_t count, int64_t padded, A* rows) {
  std::fill(rows, rows + 7 * padded, A(0));
  for (int64_t j = 0; j < count; ++j) {
    const A* box = boxes + 6 * j;
    for (int64_t i = 0; i < 6; ++i) rows[i * padded + j] = box[i];
    rows[6 * padded + j] = (box[3] - box[0]) * (box[4] - box[1]) * (box[5] - box[2]);
  }
}

// The operands as the kernels want them.
template <class T>
struct Operands {
  using A = compute_t<T>;
  int64_t n, m, m_padded;
  memory::Scratch a, b, b_rows;

  Operands(const Tensor& first, const Tensor& second)
      : n(first.size(0)),
        m(second.size(0)),
        m_padded((m + row_multiple - 1) / row_multiple * row_multiple),
        a(6 * n * static_cast<int64_t>(sizeof(A)), "box_iou3d"),
        b(6 * m * static_cast<int64_t>(sizeof(A)), "box_iou3d"),
        b_rows(7 * m_padded * static_cast<int64_t>(sizeof(A)), "box_iou3d") {
    const Tensor dense_a = torch::stable::contiguous(first), dense_b = torch::stable::contiguous(second);
    read_valid_boxes(data<T>(dense_a), n, a.template as<A>(), "box_iou3d", "a");
    read_valid_boxes(data<T>(dense_b), m, b.template as<A>(), "box_iou3d", "b");
    to_rows(b.template as<A>(), m, m_padded, b_rows.template as<A>());
  }

  // Calls f(begin, end) for rows that together are worth handing to a thread.
  template <class F>
  void for_rows(const F& f) const {
    const int64_t rows = std::max<int64_t>(32768 / std::max<int64_t>(m, 1), 1);
    for_each_piece((n + rows - 1) / rows,
                   [&](int64_t piece, int64_t) { f(piece * rows, std::min((piece + 1) * rows, n)); });
  }
};

Tensor forward(const Tensor& a, const Tensor& b) {
  check(a, b);
  return with_floating_type(a.scalar_type(), "box_iou3d", "a", [&](auto type) {
    using T = decltype(type);
    const Operands<T> x(a, b);
    Tensor y = empty_plain<T>({x.n, x.m}, "box_iou3d");
    const auto run = best_for<T>(box_iou3d::forward_f32, box_iou3d::forward_bf16, box_iou3d::forward_f64);
    const box_iou3d::Params params{x.a.template as<void>(), x.b_rows.template as<void>(), x.m, x.m_padded,
                                   y.mutable_data_ptr()};
    x.for_rows([&](int64_t begin, int64_t end) { run(params, begin, end); });
    return y;
  });
}

// The gradient with respect to a.
Tensor backward(const Tensor& grad, const Tensor& a, const Tensor& b) {
  check(a, b);
  VOLNET_CHECK(grad.dim() == 2 && grad.size(0) == a.size(0) && grad.size(1) == b.size(0) &&
                   grad.scalar_type() == a.scalar_type(),
               "box_iou3d: grad must be [N, M] in the dtype of a, got ", shape_text(sizes_of(grad)), " ",
               type_name(grad.scalar_type()));
  return with_floating_type(a.scalar_type(), "box_iou3d", "a", [&](auto type) {
    using T = decltype(type);
    const Operands<T> x(a, b);
    const Tensor dense_grad = torch::stable::contiguous(grad);
    Tensor grad_a = empty_plain<T>({x.n, 6}, "box_iou3d");
    const auto run = best_for<T>(box_iou3d::backward_f32, box_iou3d::backward_bf16, box_iou3d::backward_f64);
    const box_iou3d::BackwardParams params{
        x.a.template as<void>(),     x.b_rows.template as<void>(), x.m, x.m_padded,
        dense_grad.const_data_ptr(), grad_a.mutable_data_ptr()};
    x.for_rows([&](int64_t begin, int64_t end) { run(params, begin, end); });
    return grad_a;
  });
}

}  // namespace
}  // namespace volnet

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) {
  m.def("box_iou3d(Tensor a, Tensor b) -> Tensor");
  m.def("_box_iou3d_backward(Tensor grad, Tensor a, Tensor b) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) {
  m.impl("box_iou3d", TORCH_BOX(&volnet::forward));
  m.impl("_box_iou3d_backward", TORCH_BOX(&volnet::backward));
}

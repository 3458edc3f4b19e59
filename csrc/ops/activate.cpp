// torch.ops.volnet.activate, prelu, and their backwards.
#include "kernels/activate/activate.h"

#include "ops/dense.h"
#include "ops/dtypes.h"
#include "ops/tensors.h"

namespace volnet {
namespace {

using activate::Backward;
using activate::Forward;
using activate::Function;
using activate::Prelu;
using activate::PreluBackward;

constexpr const char* op = "activate";
constexpr const char* prelu_op = "prelu";

// Work for one thread at a time, a multiple of a line of every dtype.
constexpr int64_t piece_elements = int64_t{1} << 16;
// Larger results have mostly left the caches by the time they are read.
constexpr int64_t stream_from = int64_t{32} << 20;

Function function_of(const std::string& name) {
  if (name == "relu") return Function::relu;
  if (name == "leaky_relu") return Function::leaky_relu;
  if (name == "silu") return Function::silu;
  if (name == "gelu") return Function::gelu;
  if (name == "gelu_tanh") return Function::gelu_tanh;
  if (name == "elu") return Function::elu;
  VOLNET_CHECK(name == "sigmoid", op, ": there is no function '", name, "'");
  return Function::sigmoid;
}

bool streams(int64_t elements, int64_t element_size) { return elements * element_size >= stream_from; }

template <class T, class Params, class F32, class BF16, class F64>
void run(const F32& f32, const BF16& bf16, const F64& f64, const Params& params, int64_t elements) {
  const auto kernel = best_for<T>(f32, bf16, f64);
  for_each_piece((elements + piece_elements - 1) / piece_elements, [&](int64_t piece, int64_t) {
    const int64_t begin = piece * piece_elements;
    kernel(params, begin, std::min(begin + piece_elements, elements));
  });
}

template <class T>
void forward_into(const Tensor& x, const Tensor& y, Function function, double parameter) {
  const bool in_place = x.const_data_ptr() == y.const_data_ptr();
  const Forward params{function, parameter, x.const_data_ptr(), y.mutable_data_ptr(),
                       !in_place && streams(x.numel(), sizeof(T))};
  run<T>(activate::forward_f32, activate::forward_bf16, activate::forward_f64, params, x.numel());
}

Tensor forward(const Tensor& input, const std::string& name, double parameter) {
  const Function function = function_of(name);
  const Tensor x = dense(input, op);
  return with_floating_type(x.scalar_type(), op, "x", [&](auto type) {
    Tensor y = empty_like<decltype(type)>(x, op);
    forward_into<decltype(type)>(x, y, function, parameter);
    return y;
  });
}

void forward_in_place(const Tensor& x, const std::string& name, double parameter) {
  const Function function = function_of(name);
  VOLNET_CHECK(is_dense(x), op, ": a tensor that is changed in place must be dense");
  with_floating_type(x.scalar_type(), op, "x", [&](auto type) {
    forward_into<decltype(type)>(x, x, function, parameter);
    return 0;
  });
}

Tensor backward(const Tensor& grad, const Tensor& value, const std::string& name, double parameter,
                bool from_result) {
  const Function function = function_of(name);
  VOLNET_CHECK(sizes_of(grad) == sizes_of(value) && grad.scalar_type() == value.scalar_type(), op,
               " backward: the gradient ", shape_text(sizes_of(grad)), " does not belong to ",
               shape_text(sizes_of(value)));
  const Tensor v = dense(value, op), dy = in_order_of(grad, v, op);
  return with_floating_type(v.scalar_type(), op, "x", [&](auto type) {
    using T = decltype(type);
    Tensor dx = empty_like<T>(v, op);
    const Backward params{function,
                          parameter,
                          from_result,
                          dy.const_data_ptr(),
                          v.const_data_ptr(),
                          dx.mutable_data_ptr(),
                          streams(v.numel(), sizeof(T))};
    run<T>(activate::backward_f32, activate::backward_bf16, activate::backward_f64, params, v.numel());
    return dx;
  });
}

// How the slopes of prelu lie along the memory of x [N, C, ...], which is dense: runs of `inner` elements of
// one channel, or, where the channel is innermost, voxels of all channels.
struct Channels {
  Tensor x;
  int64_t channels, inner;
};

Channels channels_of(const Tensor& input, int64_t slopes) {
  if (slopes == 1) {  // then it does not matter which channel a value is of
    const Tensor x = dense(input, prelu_op);
    return {x, 1, x.numel()};
  }
  VOLNET_CHECK(input.dim() >= 2 && input.size(1) == slopes, prelu_op, ": weight of ", slopes,
               " does not belong to x ", shape_text(sizes_of(input)));
  const bool last = input.dim() == 5 && layout_of(input) == Layout5::channels_last;
  const Tensor x =
      last ? to_layout(input, Layout5::channels_last, prelu_op) : torch::stable::contiguous(input);
  int64_t inner = 1;
  if (!last) {
    for (int64_t i = 2; i < x.dim(); ++i) inner *= x.size(i);
  }
  return {x, slopes, inner};
}

// The pieces of x, each with the slopes that its elements have one after another.
template <class A>
struct Slopes {
  bool innermost;
  int64_t channels, period, run, runs, each, of_run;  // a run has of_run pieces of `each` elements
  std::vector<A> table;

  Slopes(const Channels& at, const std::vector<A>& slopes)
      : innermost(at.inner == 1 && at.channels > 1), channels(at.channels) {
    constexpr int64_t multiple = activate::slope_multiple;
    period = innermost ? std::lcm(channels, multiple) : multiple;
    run = innermost ? at.x.numel() : at.inner;
    runs = innermost ? 1 : at.x.numel() / std::max<int64_t>(at.inner, 1);
    each = std::max(piece_elements / period, multiple) * period;
    of_run = (run + each - 1) / each;
    table.resize(static_cast<size_t>(innermost ? period : channels * multiple));
    for (size_t i = 0; i < table.size(); ++i) {
      const auto j = static_cast<int64_t>(i);
      table[i] = slopes[static_cast<size_t>(innermost ? j % channels : j / multiple)];
    }
  }
  int64_t pieces() const { return runs * of_run; }
  // Of the first of the period of a piece's slopes.
  int64_t channel(int64_t piece) const { return innermost ? 0 : piece / of_run % channels; }
  const A* slopes(int64_t piece) const { return table.data() + channel(piece) * period; }
  int64_t begin(int64_t piece) const { return piece / of_run * run + piece % of_run * each; }
  int64_t end(int64_t piece) const {
    return piece / of_run * run + std::min((piece % of_run + 1) * each, run);
  }
};

template <class T>
bool prelu_streams(const Tensor& x, int64_t run) {
  return streams(x.numel(), sizeof(T)) && run * static_cast<int64_t>(sizeof(T)) % 64 == 0;
}

template <class T, class A = compute_t<T>>
std::vector<A> values_of(const Tensor& weight) {
  const Tensor w = torch::stable::contiguous(weight);
  std::vector<A> values(static_cast<size_t>(w.numel()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<A>(to_float(data<T>(w)[i]));
  return values;
}

void check_weight(const Tensor& x, const Tensor& weight) {
  VOLNET_CHECK(weight.scalar_type() == x.scalar_type() && weight.dim() <= 1, prelu_op,
               ": weight must be [C] or [1] of the dtype of x, got ", shape_text(sizes_of(weight)), " of ",
               type_name(weight.scalar_type()));
}

Tensor prelu(const Tensor& input, const Tensor& weight) {
  check_weight(input, weight);
  const Channels at = channels_of(input, weight.numel());
  return with_floating_type(input.scalar_type(), prelu_op, "x", [&](auto type) {
    using T = decltype(type);
    Tensor y = empty_like<T>(at.x, prelu_op);
    if (y.numel() == 0) return y;
    const Slopes<compute_t<T>> slopes(at, values_of<T>(weight));
    const bool stream = prelu_streams<T>(at.x, slopes.run);
    const auto kernel = best_for<T>(activate::prelu_f32, activate::prelu_bf16, activate::prelu_f64);
    for_each_piece(slopes.pieces(), [&](int64_t piece, int64_t) {
      kernel({slopes.slopes(piece), at.x.const_data_ptr(), y.mutable_data_ptr(), slopes.period, stream},
             slopes.begin(piece), slopes.end(piece));
    });
    return y;
  });
}

// dx and dweight.
std::tuple<Tensor, Tensor> prelu_backward(const Tensor& grad, const Tensor& input, const Tensor& weight) {
  check_weight(input, weight);
  VOLNET_CHECK(sizes_of(grad) == sizes_of(input) && grad.scalar_type() == input.scalar_type(), prelu_op,
               " backward: the gradient ", shape_text(sizes_of(grad)), " does not belong to x ",
               shape_text(sizes_of(input)));
  const Channels at = channels_of(input, weight.numel());
  const Tensor dy = in_order_of(grad, at.x, prelu_op);
  return with_floating_type(input.scalar_type(), prelu_op, "x", [&](auto type) -> std::tuple<Tensor, Tensor> {
    using T = decltype(type);
    using A = compute_t<T>;
    Tensor dx = empty_like<T>(at.x, prelu_op), dweight = empty_plain<T>(sizes_of(weight), prelu_op);
    std::vector<double> total(static_cast<size_t>(at.channels), 0.0);
    if (dx.numel() > 0) {
      const Slopes<A> slopes(at, values_of<T>(weight));
      const int64_t period = slopes.period;
      const memory::Scratch sums(slopes.pieces() * period * static_cast<int64_t>(sizeof(A)), prelu_op);
      const bool stream = prelu_streams<T>(at.x, slopes.run);
      const auto kernel = best_for<T>(activate::prelu_backward_f32, activate::prelu_backward_bf16,
                                      activate::prelu_backward_f64);
      for_each_piece(slopes.pieces(), [&](int64_t piece, int64_t) {
        A* const own = sums.as<A>() + piece * period;
        std::fill_n(own, period, A{0});
        kernel({slopes.slopes(piece), dy.const_data_ptr(), at.x.const_data_ptr(), dx.mutable_data_ptr(), own,
                period, stream},
               slopes.begin(piece), slopes.end(piece));
      });
      for (int64_t i = 0; i < slopes.pieces() * period; ++i) {
        const int64_t channel = slopes.innermost ? i % at.channels : slopes.channel(i / period);
        total[static_cast<size_t>(channel)] += static_cast<double>(sums.as<A>()[i]);
      }
    }
    for (int64_t c = 0; c < at.channels; ++c) {
      mutable_data<T>(dweight)[c] = from_float<T>(static_cast<A>(total[static_cast<size_t>(c)]));
    }
    return {dx, dweight};
  });
}

}  // namespace
}  // namespace volnet

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) {
  m.def("activate(Tensor x, str function, float parameter) -> Tensor");
  m.def("_activate_(Tensor(a!) x, str function, float parameter) -> ()");
  m.def(
      "_activate_backward(Tensor grad, Tensor value, str function, float parameter, bool from_result) -> "
      "Tensor");
  m.def("prelu(Tensor x, Tensor weight) -> Tensor");
  m.def("_prelu_backward(Tensor grad, Tensor x, Tensor weight) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) {
  m.impl("activate", TORCH_BOX(&volnet::forward));
  m.impl("_activate_", TORCH_BOX(&volnet::forward_in_place));
  m.impl("_activate_backward", TORCH_BOX(&volnet::backward));
  m.impl("prelu", TORCH_BOX(&volnet::prelu));
  m.impl("_prelu_backward", TORCH_BOX(&volnet::prelu_backward));
}

// torch.ops.volnet.hardest.
#include "kernels/hardest/hardest.h"

#include "ops/dtypes.h"
#include "ops/tensors.h"

namespace volnet {
namespace {

using hardest::Key;
using hardest::Numbers;

constexpr const char* op = "hardest";

// The kernels of a type of number.
template <class A>
struct Kernels;
template <>
struct Kernels<float> {
  static auto histogram() { return hardest::histogram_f32.best(); }
  static auto sides() { return hardest::sides_f32.best(); }
  static auto choose() { return hardest::choose_f32.best(); }
};
template <>
struct Kernels<double> {
  static auto histogram() { return hardest::histogram_f64.best(); }
  static auto sides() { return hardest::sides_f64.best(); }
  static auto choose() { return hardest::choose_f64.best(); }
};

// Numbers for one thread at a time.
constexpr int64_t run = int64_t{1} << 13;

int64_t pieces_of(int64_t count) { return (count + run - 1) / run; }

// The numbers of a piece are [begin, end).
struct Piece {
  int64_t begin, end;
  Piece(int64_t piece, int64_t count) : begin(piece * run), end(std::min((piece + 1) * run, count)) {}
};

template <class A>
std::vector<int64_t> histogram_of(const Numbers<A>& numbers, int64_t count, int shift, bool top,
                                  Key<A> above) {
  constexpr int64_t each = hardest::digits;
  const int64_t pieces = pieces_of(count);
  std::vector<int64_t> counts(static_cast<size_t>(worker_count(pieces) * each));
  const auto kernel = Kernels<A>::histogram();
  for_each_piece(pieces, [&](int64_t piece, int64_t worker) {
    hardest::Histogram<A> params{numbers, shift, top, above, counts.data() + worker * each};
    const Piece at(piece, count);
    kernel(params, at.begin, at.end);
  });
  for (size_t i = each; i < counts.size(); ++i) counts[i % each] += counts[i];
  counts.resize(each);
  return counts;
}

// The key of the `rank`-th greatest, and how many of those that have it are among them.
template <class A>
struct Threshold {
  Key<A> key;
  int64_t equals;
};
template <class A>
Threshold<A> threshold(const Numbers<A>& numbers, int64_t count, int64_t rank) {
  constexpr int bits = 8 * sizeof(A), digit = hardest::digit_bits;
  Key<A> above = 0;
  for (int shift = (bits - 1) / digit * digit; shift >= 0; shift -= digit) {
    const bool top = shift + digit >= bits;
    const auto counts = histogram_of<A>(numbers, count, shift, top, above);
    size_t value = counts.size() - 1;
    if (top) {  // fewer than there are is all of them
      int64_t all = 0;
      for (const int64_t n : counts) all += n;
      rank = std::min(rank, all);
      if (rank == 0) return {~Key<A>{0}, 0};
    }
    while (counts[value] < rank) rank -= counts[value--];
    above = top ? static_cast<Key<A>>(value) : static_cast<Key<A>>(above << digit | value);
  }
  return {above, rank};
}

template <class A>
A value_of(Key<A> key) {
  constexpr int sign = 8 * sizeof(A) - 1;
  const Key<A> bits = key >> sign ? key ^ Key<A>{1} << sign : ~key;
  A value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class A>
double choose(const Numbers<A>& numbers, int64_t count, int64_t rank, uint8_t* chosen) {
  const Threshold<A> last = threshold<A>(numbers, count, rank);
  const int64_t pieces = pieces_of(count);
  std::vector<hardest::Sides<A>> sides(static_cast<size_t>(pieces), {numbers, last.key, 0, 0});
  const auto count_sides = Kernels<A>::sides();
  for_each_piece(pieces, [&](int64_t piece, int64_t) {
    const Piece at(piece, count);
    count_sides(sides[static_cast<size_t>(piece)], at.begin, at.end);
  });
  double sum =
      last.equals > 0 ? static_cast<double>(value_of<A>(last.key)) * static_cast<double>(last.equals) : 0;
  int64_t left = last.equals;
  for (hardest::Sides<A>& side : sides) {
    sum += side.sum;
    const int64_t taken = std::min(left, side.equals);
    left -= taken;
    side.equals = taken;
  }
  const auto mark = Kernels<A>::choose();
  for_each_piece(pieces, [&](int64_t piece, int64_t) {
    hardest::Choice<A> params{numbers, last.key, sides[static_cast<size_t>(piece)].equals, chosen};
    const Piece at(piece, count);
    mark(params, at.begin, at.end);
  });
  return sum;
}

std::tuple<Tensor, Tensor> forward(const Tensor& input, const std::optional<Tensor>& candidates,
                                   const Tensor& count) {
  const Tensor values = torch::stable::contiguous(input);
  VOLNET_CHECK(count.scalar_type() == ScalarType::Long && count.numel() == 1, op,
               ": count must be one int64, got ", type_name(count.scalar_type()), ' ',
               shape_text(sizes_of(count)));
  const int64_t rank = *data<int64_t>(count);
  VOLNET_CHECK(rank >= 0, op, ": count must not be negative, got ", rank);
  std::optional<Tensor> taking_part;
  if (candidates) {
    VOLNET_CHECK(candidates->scalar_type() == ScalarType::Bool && sizes_of(*candidates) == sizes_of(values),
                 op, ": candidates must be bool of shape ", shape_text(sizes_of(values)), ", got ",
                 type_name(candidates->scalar_type()), ' ', shape_text(sizes_of(*candidates)));
    taking_part = torch::stable::contiguous(*candidates);
  }
  const auto* const part = taking_part ? static_cast<const uint8_t*>(taking_part->const_data_ptr()) : nullptr;
  Tensor sum = empty_plain<double>({}, op);
  const auto sizes = sizes_of(values);
  Tensor chosen = empty_strided(sizes, contiguous_strides(sizes), ScalarType::Bool, 1, op);
  auto* const to = static_cast<uint8_t*>(chosen.mutable_data_ptr());
  const int64_t n = values.numel();
  const bool is_double = values.scalar_type() == ScalarType::Double;
  VOLNET_CHECK(is_double || values.scalar_type() == ScalarType::Float, op,
               ": values must be float32 or float64, got ", type_name(values.scalar_type()));
  *mutable_data<double>(sum) = is_double ? choose<double>({data<double>(values), part}, n, rank, to)
                                         : choose<float>({data<float>(values), part}, n, rank, to);
  return {sum, chosen};
}

}  // namespace
}  // namespace volnet

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) {
  m.def("hardest(Tensor values, Tensor? candidates, Tensor count) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) { m.impl("hardest", TORCH_BOX(&volnet::forward)); }

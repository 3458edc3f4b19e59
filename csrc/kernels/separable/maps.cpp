#include "kernels/separable/maps.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace volnet::separable {

template <class A>
void Table<A>::add(const std::vector<Tap>& taps) {
  rows_.push_back(taps);
  taps_ = std::max(taps_, static_cast<int64_t>(taps.size()));
}

template <class A>
void Table<A>::finish() {
  const size_t taps = static_cast<size_t>(taps_);
  count_.resize(rows_.size());
  index_.assign(rows_.size() * taps, 0);
  weight_.assign(rows_.size() * taps, 0);
  for (size_t o = 0; o < rows_.size(); ++o) {
    count_[o] = static_cast<int64_t>(rows_[o].size());
    for (size_t k = 0; k < rows_[o].size(); ++k) {
      index_[o * taps + k] = rows_[o][k].index;
      weight_[o * taps + k] = rows_[o][k].weight;
    }
  }
  rows_.clear();
}

template <class A>
Map<A> Table<A>::map() const {
  const bool selects = taps_ == 1 &&
                       std::all_of(count_.begin(), count_.end(), [](int64_t n) { return n == 1; }) &&
                       std::all_of(weight_.begin(), weight_.end(), [](A w) { return w == 1; });
  return {in_,           static_cast<int64_t>(count_.size()), taps_, selects, count_.data(), index_.data(),
          weight_.data()};
}

template <class A>
Table<A> Table<A>::transposed() const {
  Table result(static_cast<int64_t>(count_.size()));
  result.rows_.resize(static_cast<size_t>(in_));
  for (size_t o = 0; o < count_.size(); ++o) {
    for (int64_t k = 0; k < count_[o]; ++k) {
      const size_t at = o * static_cast<size_t>(taps_) + static_cast<size_t>(k);
      auto& row = result.rows_[static_cast<size_t>(index_[at])];
      if (!row.empty() && row.back().index == static_cast<int64_t>(o)) {
        row.back().weight += weight_[at];  // at the edge, where both taps are the same input
      } else {
        row.push_back({static_cast<int64_t>(o), weight_[at]});
      }
    }
  }
  for (const auto& row : result.rows_)
    result.taps_ = std::max(result.taps_, static_cast<int64_t>(row.size()));
  result.finish();
  return result;
}

namespace {

// Inputs per output.
template <class A>
A ratio(const Interpolation<A>& axis) {
  return axis.scale ? static_cast<A>(1.0 / *axis.scale) : static_cast<A>(axis.in) / static_cast<A>(axis.out);
}

int64_t nearest_plain(float scale, int64_t o) {
  return static_cast<int64_t>(std::floor(static_cast<float>(o) * scale));
}
int64_t nearest_plain(double scale, int64_t o) {
  return static_cast<int64_t>(std::floor(static_cast<float>(static_cast<double>(o) * scale)));
}
int64_t nearest_exact_plain(float scale, int64_t o) {
  // Torch's build lets the compiler fuse the product and the difference.
  const float index = std::fma(scale, static_cast<float>(o) + 0.5f, -0.5f);
  return static_cast<int64_t>(std::floor(index + 0.5f));
}
int64_t nearest_exact_plain(double scale, int64_t o) {
  const double index = scale * (static_cast<double>(o) + 0.5) - 0.5;
  return static_cast<int64_t>(std::floor(static_cast<float>(index + 0.5)));
}

template <class A>
int64_t nearest_index(const Interpolation<A>& axis, bool exact, bool channels_last, int64_t o) {
  if (!channels_last) {
    return exact ? nearest_exact_plain(ratio(axis), o) : nearest_plain(ratio(axis), o);
  }
  const float scale = ratio(Interpolation<float>{axis.in, axis.out, axis.scale});
  if (exact) {
    return static_cast<int64_t>(
        std::floor(static_cast<float>((static_cast<double>(o) + 0.5) * static_cast<double>(scale))));
  }
  if (axis.out == axis.in) return o;
  if (axis.out == 2 * axis.in) return o / 2;
  return nearest_plain(scale, o);
}

}  // namespace

template <class A>
Table<A> nearest(const Interpolation<A>& axis, bool exact, bool channels_last) {
  Table<A> table(axis.in);
  for (int64_t o = 0; o < axis.out; ++o) {
    table.add({{std::clamp<int64_t>(nearest_index(axis, exact, channels_last, o), 0, axis.in - 1), 1}});
  }
  table.finish();
  return table;
}

template <class A>
Table<A> linear(const Interpolation<A>& axis, bool align_corners) {
  Table<A> table(axis.in);
  const A aligned = axis.out > 1 ? static_cast<A>(axis.in - 1) / static_cast<A>(axis.out - 1) : A{0};
  const A scale = align_corners ? aligned : ratio(axis);
  for (int64_t o = 0; o < axis.out; ++o) {
    if (axis.in == axis.out) {
      table.add({{o, 1}});
      continue;
    }
    const A at = static_cast<A>(o);
    const A position = align_corners ? scale * at : std::max(std::fma(scale, at + A{0.5}, A{-0.5}), A{0});
    const int64_t index = std::min(static_cast<int64_t>(std::floor(position)), axis.in - 1);
    const A upper = std::clamp(position - static_cast<A>(index), A{0}, A{1});
    table.add({{index, 1 - upper}, {std::min(index + 1, axis.in - 1), upper}});
  }
  table.finish();
  return table;
}

template <class A>
Table<A> area(const Interpolation<A>& axis) {
  Table<A> table(axis.in);
  std::vector<typename Table<A>::Tap> taps;
  for (int64_t o = 0; o < axis.out; ++o) {
    const int64_t begin = o * axis.in / axis.out, end = ((o + 1) * axis.in + axis.out - 1) / axis.out;
    taps.clear();
    for (int64_t i = begin; i < end; ++i) taps.push_back({i, A{1} / static_cast<A>(end - begin)});
    table.add(taps);
  }
  table.finish();
  return table;
}

template <class A>
Table<A> convolution(int64_t in, const std::vector<double>& kernel, Boundary boundary) {
  const auto radius = static_cast<int64_t>(kernel.size() / 2);
  const auto modulo = [](int64_t i, int64_t n) { return (i % n + n) % n; };
  Table<A> table(in);
  for (int64_t o = 0; o < in; ++o) {
    std::vector<std::pair<int64_t, double>> row;
    for (int64_t k = -radius; k <= radius; ++k) {
      int64_t i = o + k;
      if (i < 0 || i >= in) {
        if (boundary == Boundary::constant) continue;
        if (boundary == Boundary::nearest) i = std::clamp<int64_t>(i, 0, in - 1);
        if (boundary == Boundary::wrap) i = modulo(i, in);
        if (boundary == Boundary::reflect) {
          i = modulo(i, 2 * in);
          i = std::min(i, 2 * in - 1 - i);
        }
        if (boundary == Boundary::mirror) {
          i = in == 1 ? 0 : modulo(i, 2 * in - 2);
          i = std::min(i, 2 * in - 2 - i);
        }
      }
      row.emplace_back(i, kernel[static_cast<size_t>(k + radius)]);
    }
    // Where the kernel is wider than the volume, many taps fall on an input: they are summed in double.
    std::sort(row.begin(), row.end());
    std::vector<typename Table<A>::Tap> taps;
    for (size_t k = 0; k < row.size();) {
      const int64_t i = row[k].first;
      double sum = 0;
      for (; k < row.size() && row[k].first == i; ++k) sum += row[k].second;
      taps.push_back({i, static_cast<A>(sum)});
    }
    table.add(taps);
  }
  table.finish();
  return table;
}

namespace {

// The inverse of the matrix that makes voxels from coefficients, rows [1 4 1] / 6 with the outer ones
// mirrored, row by row: applied to a few weights of coefficients it gives those of voxels.
class SplineInverse {
 public:
  explicit SplineInverse(int64_t n) : n_(n) {}

  // weights: of the coefficients first, first + 1, ...
  std::vector<std::pair<int64_t, double>> operator()(int64_t first,
                                                     const std::vector<double>& weights) const {
    // An entry is 0.268 to the power of its distance from the diagonal: 32 voxels away nothing is left.
    constexpr int64_t reach = 32;
    const int64_t begin = std::max<int64_t>(first - reach, 0);
    const int64_t end = std::min(first + static_cast<int64_t>(weights.size()) + reach, n_);
    const auto size = static_cast<size_t>(end - begin);
    std::vector<double> x(size), upper(size);
    for (size_t k = 0; k < weights.size(); ++k) x[static_cast<size_t>(first - begin) + k] = weights[k];
    // Thomas' algorithm on the transposed matrix.
    for (size_t i = 0; i < size; ++i) {
      const double below =
          i > 0 ? entry(begin + static_cast<int64_t>(i) - 1, begin + static_cast<int64_t>(i)) : 0;
      const double above =
          i + 1 < size ? entry(begin + static_cast<int64_t>(i) + 1, begin + static_cast<int64_t>(i)) : 0;
      const double pivot = entry(begin + static_cast<int64_t>(i), begin + static_cast<int64_t>(i)) -
                           (i > 0 ? below * upper[i - 1] : 0);
      upper[i] = above / pivot;
      x[i] = (x[i] - (i > 0 ? below * x[i - 1] : 0)) / pivot;
    }
    for (size_t i = size; i-- > 1;) x[i - 1] -= upper[i - 1] * x[i];

    std::vector<std::pair<int64_t, double>> result;
    for (size_t i = 0; i < size; ++i) {
      if (std::abs(x[i]) > 1e-8) result.emplace_back(begin + static_cast<int64_t>(i), x[i]);
    }
    return result;
  }

 private:
  double entry(int64_t row, int64_t column) const {
    if (n_ == 1) return 1;
    if (row == column) return 4.0 / 6;
    return row == 0 || row == n_ - 1 ? 2.0 / 6 : 1.0 / 6;
  }

  int64_t n_;
};

template <class A>
void add_taps(Table<A>& table, const std::vector<std::pair<int64_t, double>>& row) {
  std::vector<typename Table<A>::Tap> taps;
  for (const auto& [index, weight] : row) taps.push_back({index, static_cast<A>(weight)});
  table.add(taps);
}

}  // namespace

template <class A>
Table<A> sampled(int64_t in, int64_t first, int64_t last, double start, double step, Sampling sampling) {
  Table<A> table(in);
  const SplineInverse inverse(in);
  for (int64_t o = first; o < last; ++o) {
    const double position = start + step * static_cast<double>(o);
    if (sampling == Sampling::nearest) {
      table.add({{std::clamp<int64_t>(static_cast<int64_t>(std::floor(position + 0.5)), 0, in - 1), 1}});
      continue;
    }
    const double floor = std::floor(position), t = position - floor;
    const auto lower = static_cast<int64_t>(floor);
    if (sampling == Sampling::linear) {
      const int64_t a = std::clamp<int64_t>(lower, 0, in - 1), b = std::clamp<int64_t>(lower + 1, 0, in - 1);
      table.add({{a, static_cast<A>(1 - t)}, {b, static_cast<A>(t)}});
      continue;
    }
    const std::array<double, 4> cubic = {(1 - t) * (1 - t) * (1 - t) / 6, 2.0 / 3 - t * t * (2 - t) / 2,
                                         2.0 / 3 - (1 - t) * (1 - t) * (1 + t) / 2, t * t * t / 6};
    // Mirrored, at most half a voxel past the ends, they are neighbours still.
    std::array<int64_t, 4> at;
    for (int64_t k = 0; k < 4; ++k) {
      int64_t i = lower - 1 + k;
      i = std::abs(i);
      if (i >= in) i = std::abs(2 * (in - 1) - i);
      at[static_cast<size_t>(k)] = in == 1 ? 0 : i;
    }
    const int64_t least = *std::min_element(at.begin(), at.end());
    std::vector<double> weights(static_cast<size_t>(*std::max_element(at.begin(), at.end()) - least + 1));
    for (size_t k = 0; k < 4; ++k) weights[static_cast<size_t>(at[k] - least)] += cubic[k];
    add_taps(table, inverse(least, weights));
  }
  table.finish();
  return table;
}

template <class A>
Table<A> spline_coefficients(int64_t in) {
  Table<A> table(in);
  const SplineInverse inverse(in);
  for (int64_t o = 0; o < in; ++o) add_taps(table, inverse(o, {1.0}));
  table.finish();
  return table;
}

#define VOLNET_INSTANTIATE(A)                                                     \
  template class Table<A>;                                                        \
  template Table<A> nearest(const Interpolation<A>&, bool, bool);                 \
  template Table<A> linear(const Interpolation<A>&, bool);                        \
  template Table<A> area(const Interpolation<A>&);                                \
  template Table<A> convolution(int64_t, const std::vector<double>&, Boundary);   \
  template Table<A> sampled(int64_t, int64_t, int64_t, double, double, Sampling); \
  template Table<A> spline_coefficients(int64_t);
VOLNET_INSTANTIATE(float)
VOLNET_INSTANTIATE(double)
#undef VOLNET_INSTANTIATE

}  // namespace volnet::separable

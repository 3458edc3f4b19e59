// The vector code of spread.h, over Vec. Included inside the level's namespace, once.

// zero: the index of a value that is 0, for voxels with fewer windows than others.
inline void fill_spread_table(const pooling::Axis& a, int64_t pitch, int64_t zero, int32_t* table) {
  if (!pooling::spreads_by_table(a)) return;
  std::fill_n(table, pooling::spread_table_length(a), static_cast<int32_t>(zero));
  for (int64_t w = 0; w < a.in; ++w) {
    const pooling::Range of = pooling::outputs_touching(a, w, w + 1);
    for (int64_t o = of.begin; o < of.end; ++o) {
      const int64_t distance = w - pooling::position(a, o, 0);
      if (distance % a.dilation != 0) continue;
      table[(o - of.begin) * pooling::round_up(a.in) + w] =
          static_cast<int32_t>(distance / a.dilation * pitch + o);
    }
  }
}

// Lanes of two vectors one by one in turn: the first half of the result, and the second.
struct InTurn {
  alignas(64) int32_t first[Vec::width] = {}, second[Vec::width] = {};
  constexpr InTurn() {
    for (int32_t i = 0; i < Vec::width; ++i) {
      first[i] = i / 2 + i % 2 * static_cast<int32_t>(Vec::width);
      second[i] = first[i] + static_cast<int32_t>(Vec::width) / 2;
    }
  }
};

// spread_row for stride 2; kernel: that of the axis, 0 for any.
template <int kernel, class T>
inline void spread_pairs(const pooling::Axis& a, const float* values, int64_t pitch, T* row) {
  static constexpr InTurn in_turn;
  for (int64_t w = 0; w < a.in; w += 2 * Vec::width) {
    Vec even = Vec::zero(), odd = Vec::zero();
    for (int64_t j = 0; j < (kernel > 0 ? kernel : a.kernel); ++j) {
      const int64_t from = w + a.padding - j * a.dilation;  // twice an output, or that less one
      if ((from & 1) == 0) {
        even = even + Vec::load(values + j * pitch + from / 2);
      } else {
        odd = odd + Vec::load(values + j * pitch + (from + 1) / 2);
      }
    }
    Vec::pick(in_turn.first, even, odd).store(row + w);
    Vec::pick(in_turn.second, even, odd).store(row + w + Vec::width);
  }
}

// row[w] = sum of what the windows bring to voxel w, w < a.in. values: output 0 at tap 0. Up to two
// vectors behind the row are written too. table_rows: most_outputs(a).
template <class T>
inline void spread_row(const pooling::Axis& a, const float* values, int64_t pitch, const int32_t* table,
                       int64_t table_rows, T* row) {
  if (pooling::spreads_by_table(a)) {
    const int64_t columns = pooling::round_up(a.in);
    for (int64_t w = 0; w < a.in; w += Vec::width) {
      Vec sum = Vec::zero();
      for (int64_t i = 0; i < table_rows; ++i)
        sum = sum + VecInt::load(table + i * columns + w).gather(values);
      sum.store(row + w);
    }
    return;
  }
  if (a.stride == 1) {
    for (int64_t w = 0; w < a.in; w += Vec::width) {
      Vec sum = Vec::zero();
      for (int64_t j = 0; j < a.kernel; ++j) {
        sum = sum + Vec::load(values + j * pitch + w + a.padding - j * a.dilation);
      }
      sum.store(row + w);
    }
    return;
  }
  if (a.kernel == 3) {
    spread_pairs<3>(a, values, pitch, row);
  } else if (a.kernel == 2) {
    spread_pairs<2>(a, values, pitch, row);
  } else {
    spread_pairs<0>(a, values, pitch, row);
  }
}

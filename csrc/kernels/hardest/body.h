// Included inside volnet::hardest::VOLNET_ISA. hardest.h is the specification. There is no Vec in it:
// compilers make vectors of what is not counting.

template <class A>
inline Key<A> key_of(A value) {
  using K = Key<A>;
  constexpr int sign = 8 * sizeof(K) - 1;
  K bits;
  std::memcpy(&bits, &value, sizeof bits);
  const K key = bits ^ ((K{0} - (bits >> sign)) | K{1} << sign);
  return value == value ? key : ~K{0};
}

template <class A>
inline bool takes_part(const Numbers<A>& numbers, int64_t i) {
  return numbers.candidates == nullptr || numbers.candidates[i] != 0;
}

template <class A>
void histogram(Histogram<A>& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    if (!takes_part(p.numbers, i)) continue;
    const Key<A> key = key_of(p.numbers.values[i]) >> p.shift;
    if (p.top || key >> digit_bits == p.above) ++p.counts[key & (digits - 1)];
  }
}

template <class A>
void sides(Sides<A>& p, int64_t begin, int64_t end) {
  constexpr int64_t lanes = 16;
  double sums[lanes] = {};  // in a fixed order, whatever the vectors
  int64_t equals = 0;
  for (int64_t i = begin; i < end; i += lanes) {
    const int64_t n = std::min(lanes, end - i);
    for (int64_t lane = 0; lane < n; ++lane) {
      const Key<A> key = key_of(p.numbers.values[i + lane]);
      const bool counts = takes_part(p.numbers, i + lane);
      sums[lane] += counts && key > p.key ? static_cast<double>(p.numbers.values[i + lane]) : 0.0;
      equals += counts && key == p.key;
    }
  }
  p.sum = 0;
  for (const double sum : sums) p.sum += sum;
  p.equals = equals;
}

template <class A>
void choose(Choice<A>& p, int64_t begin, int64_t end) {
  int64_t equals = p.equals;
  for (int64_t i = begin; i < end; ++i) {
    const Key<A> key = key_of(p.numbers.values[i]);
    const bool counts = takes_part(p.numbers, i), equal = counts && key == p.key;
    p.chosen[i] = counts && (key > p.key || (equal && equals > 0));
    equals -= equal;
  }
}

#define VOLNET_DEFINE(DTYPE, A)                                                                     \
  void histogram_##DTYPE(Histogram<A>& p, int64_t begin, int64_t end) { histogram(p, begin, end); } \
  void sides_##DTYPE(Sides<A>& p, int64_t begin, int64_t end) { sides(p, begin, end); }             \
  void choose_##DTYPE(Choice<A>& p, int64_t begin, int64_t end) { choose(p, begin, end); }
VOLNET_DEFINE(f32, float)

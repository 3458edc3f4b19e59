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

// Numbers whose keys are in work at a time: loops over them without a branch, which compilers make vectors
// of, before what has to go one by one.
static constexpr int64_t block = 64;

template <class A>
void histogram(Histogram<A>& p, int64_t begin, int64_t end) {
  Key<A> keys[block];
  for (int64_t i = begin; i < end; i += block) {
    const int64_t n = std::min(block, end - i);
    for (int64_t at = 0; at < n; ++at) keys[at] = key_of(p.numbers.values[i + at]) >> p.shift;
    int64_t left = 0;
    for (int64_t at = 0; at < n; ++at) {
      const Key<A> key = keys[at];
      keys[left] = key;
      left += (p.top || key >> digit_bits == p.above) && takes_part(p.numbers, i + at);
    }
    for (int64_t at = 0; at < left; ++at) ++p.counts[keys[at] & (digits - 1)];
  }
}

// One number to a lane: its sum if it is above the key, its count if it has the key.
template <class A, bool all>
inline void add(const Sides<A>& p, int64_t i, A& sum, int32_t& equals) {
  const A value = p.numbers.values[i];
  const Key<A> key = key_of(value);
  const bool counts = all || p.numbers.candidates[i] != 0;
  sum += counts && key > p.key ? value : A{0};
  equals += counts && key == p.key;
}

template <class A, bool all>
void sides(Sides<A>& p, int64_t begin, int64_t end) {
  constexpr int64_t lanes = 16, flush = 64 * lanes;
  int32_t equals[lanes] = {};
  p.sum = 0;
  for (int64_t from = begin; from < end; from += flush) {
    const int64_t to = std::min(from + flush, end);
    A sums[lanes] = {};
    int64_t i = from;
    for (; i + lanes <= to; i += lanes) {
      for (int64_t lane = 0; lane < lanes; ++lane) add<A, all>(p, i + lane, sums[lane], equals[lane]);
    }
    for (; i < to; ++i) add<A, all>(p, i, sums[0], equals[0]);
    for (const A sum : sums) p.sum += static_cast<double>(sum);
  }
  p.equals = 0;
  for (const int32_t n : equals) p.equals += n;
}
template <class A>
void sides(Sides<A>& p, int64_t begin, int64_t end) {
  (p.numbers.candidates == nullptr ? sides<A, true> : sides<A, false>)(p, begin, end);
}

template <class A>
void choose(Choice<A>& p, int64_t begin, int64_t end) {
  int64_t equals = p.equals;
  for (int64_t i = begin; i < end; i += block) {
    const int64_t n = std::min(block, end - i);
    uint8_t equal[block];
    int32_t found = 0;
    for (int64_t at = 0; at < n; ++at) {
      const Key<A> key = key_of(p.numbers.values[i + at]);
      equal[at] = key == p.key;
      p.chosen[i + at] = key > p.key;
      found += key == p.key;
    }
    if (p.numbers.candidates != nullptr) {
      for (int64_t at = 0; at < n; ++at) p.chosen[i + at] &= p.numbers.candidates[i + at] != 0;
    }
    if (found == 0 || equals == 0) continue;
    for (int64_t at = 0; at < n && equals > 0; ++at) {
      const bool taken = equal[at] != 0 && takes_part(p.numbers, i + at);
      p.chosen[i + at] |= static_cast<uint8_t>(taken);
      equals -= taken;
    }
  }
}

#define VOLNET_DEFINE(DTYPE, A)                                                                     \
  void histogram_##DTYPE(Histogram<A>& p, int64_t begin, int64_t end) { histogram(p, begin, end); } \
  void sides_##DTYPE(Sides<A>& p, int64_t begin, int64_t end) { sides(p, begin, end); }             \
  void choose_##DTYPE(Choice<A>& p, int64_t begin, int64_t end) { choose(p, begin, end); }
VOLNET_DEFINE(f32, float)

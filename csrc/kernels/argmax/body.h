// Included inside volnet::argmax::VOLNET_ISA, after Vec. argmax.h is the specification.

// The greatest values so far and their channels, one in each lane.
template <class T>
struct Greatest {
  T value;
  VecInt channel;

  inline void take(T other, VecInt its_channel) {
    const auto more = T::both(T::either(T::greater(other, value), T::is_nan(other)), T::equal(value, value));
    value = T::select(more, other, value);
    channel = VecInt::select(more, its_channel, channel);
  }
};

// The hardware's prefetcher stops at the end of a page.
template <class S>
inline void prefetch(const S* p) {
  __builtin_prefetch(reinterpret_cast<const char*>(p) + 2048);
}

template <class T, class S, class Label>
void find_as(const Params& p, int64_t begin, int64_t end) {
  constexpr int64_t block = 1024;  // voxels, of which a channel is read after the other
  typename T::element greatest[block];
  int32_t channels[block];
  for (int64_t v = begin; v < end; v += block) {
    const int64_t n = std::min(block, end - v);
    const S* const x = static_cast<const S*>(p.x) + v;
    for (int64_t c = 0; c < p.channels; ++c) {
      const VecInt channel = VecInt::broadcast(static_cast<int32_t>(c));
      for (int64_t i = 0; i < n; i += T::width) {
        prefetch(x + c * p.stride + i);
        const S* const at = x + c * p.stride + i;
        const T value = n - i >= T::width ? T::load(at) : T::load(at, n - i);
        Greatest<T> so_far{value, channel};
        if (c > 0) {
          so_far = {T::load(greatest + i), VecInt::load(channels + i)};
          so_far.take(value, channel);
        }
        so_far.value.store(greatest + i);
        so_far.channel.store(channels + i);
      }
    }
    std::copy_n(channels, n, static_cast<Label*>(p.labels) + v);
  }
}

template <class T, class S, class Label>
void find_rows_as(const Params& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const S* const x = static_cast<const S*>(p.x) + row * p.channels;
    VecInt channel = VecInt::iota();
    const VecInt step = VecInt::broadcast(static_cast<int32_t>(T::width));
    Greatest<T> so_far{T::load(x, std::min(T::width, p.channels)), channel};
    int64_t c = T::width;
    for (; c + T::width <= p.channels; c += T::width) {
      prefetch(x + c);
      channel = channel + step;
      so_far.take(T::load(x + c), channel);
    }
    typename T::element values[T::width];
    int32_t channels[T::width];
    so_far.value.store(values);
    so_far.channel.store(channels);
    auto value = values[0];
    int32_t first = channels[0];
    for (int64_t i = 1; i < std::min(T::width, p.channels); ++i) {
      const bool is_nan = values[i] != values[i];
      const bool more = value == value && (values[i] > value || is_nan);
      const bool same = values[i] == value || (is_nan && value != value);
      if (more || (same && channels[i] < first)) {
        value = values[i];
        first = channels[i];
      }
    }
    for (; c < p.channels; ++c) {
      const auto other = to_float(x[c]);
      if (value == value && (other > value || other != other)) {
        value = other;
        first = static_cast<int32_t>(c);
      }
    }
    static_cast<Label*>(p.labels)[row] = static_cast<Label>(first);
  }
}

template <class T, class S>
void find(const Params& p, int64_t begin, int64_t end) {
  switch (p.label) {
    case Label::uint8:
      return find_as<T, S, uint8_t>(p, begin, end);
    case Label::int16:
      return find_as<T, S, int16_t>(p, begin, end);
    case Label::int32:
      return find_as<T, S, int32_t>(p, begin, end);
    case Label::int64:
      return find_as<T, S, int64_t>(p, begin, end);
  }
}

template <class T, class S>
void find_rows(const Params& p, int64_t begin, int64_t end) {
  switch (p.label) {
    case Label::uint8:
      return find_rows_as<T, S, uint8_t>(p, begin, end);
    case Label::int16:
      return find_rows_as<T, S, int16_t>(p, begin, end);
    case Label::int32:
      return find_rows_as<T, S, int32_t>(p, begin, end);
    case Label::int64:
      return find_rows_as<T, S, int64_t>(p, begin, end);
  }
}

#define VOLNET_DEFINE(DTYPE, T, S)                                                              \
  void find_##DTYPE(const Params& p, int64_t begin, int64_t end) { find<T, S>(p, begin, end); } \
  void find_rows_##DTYPE(const Params& p, int64_t begin, int64_t end) { find_rows<T, S>(p, begin, end); }
VOLNET_DEFINE(f32, Vec, float)
VOLNET_DEFINE(bf16, Vec, bfloat16)

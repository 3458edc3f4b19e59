// Included inside volnet::layout::VOLNET_ISA by the levels that have no better way for few channels.

// Between a few channels [channels, voxels] and [voxels, channels]; the number is a constant of the loop, so
// that the compiler unrolls it.
template <class E>
struct Few {
  static constexpr int64_t most = 8;  // channels

  template <int64_t channels>
  static inline void join(const E* src, int64_t pitch, E* dst, int64_t voxels) {
    for (int64_t v = 0; v < voxels; ++v) {
      for (int64_t c = 0; c < channels; ++c) dst[v * channels + c] = src[c * pitch + v];
    }
  }
  template <int64_t channels>
  static inline void split(const E* src, E* dst, int64_t pitch, int64_t voxels) {
    for (int64_t v = 0; v < voxels; ++v) {
      for (int64_t c = 0; c < channels; ++c) dst[c * pitch + v] = src[v * channels + c];
    }
  }
  template <int64_t channels>
  static inline void run(bool joins, const E* src, E* dst, int64_t pitch, int64_t voxels) {
    if (joins) {
      join<channels>(src, pitch, dst, voxels);
    } else {
      split<channels>(src, dst, pitch, voxels);
    }
  }
  // joins: src is [channels, pitch] and dst [voxels, channels]; else the other way round.
  static inline void move(bool joins, int64_t channels, const E* src, E* dst, int64_t pitch, int64_t voxels,
                          bool) {
    switch (channels) {
      case 1:
        return run<1>(joins, src, dst, pitch, voxels);
      case 2:
        return run<2>(joins, src, dst, pitch, voxels);
      case 3:
        return run<3>(joins, src, dst, pitch, voxels);
      case 4:
        return run<4>(joins, src, dst, pitch, voxels);
      case 5:
        return run<5>(joins, src, dst, pitch, voxels);
      case 6:
        return run<6>(joins, src, dst, pitch, voxels);
      case 7:
        return run<7>(joins, src, dst, pitch, voxels);
      default:
        return run<8>(joins, src, dst, pitch, voxels);
    }
  }
};

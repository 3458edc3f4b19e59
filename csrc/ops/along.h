// Work along one axis of a dense tensor, say over the channels of each voxel, cut into pieces.
#pragma once

#include "kernels/layout/layout.h"
#include "ops/dense.h"

namespace volnet {

// A dense tensor as [outer, count, inner], the axis in the middle and the others in their order in memory.
struct Along {
  int64_t outer, count, inner;
};

inline Along along(const Tensor& x, int64_t axis) {
  const int64_t count = x.size(axis);
  if (count == 1) return {1, 1, x.numel()};
  const int64_t inner = x.stride(axis);
  return {x.numel() / std::max<int64_t>(count * inner, 1), count, inner};
}

// Elements for one thread at a time.
inline constexpr int64_t piece_along = int64_t{1} << 16;

// f(piece, scratch) for each piece, with scratch that belongs to the thread.
template <class F>
void for_each_with_scratch(int64_t pieces, const char* op, int64_t scratch_bytes, const F& f) {
  const int64_t step = (scratch_bytes + 63) / 64 * 64;
  const memory::Scratch scratch(worker_count(pieces) * step, op);
  for_each_piece(pieces,
                 [&](int64_t piece, int64_t worker) { f(piece, scratch.as<char>() + worker * step); });
}

// f(first, begin, end, scratch) for voxels [begin, end) of the [count, inner] that start at element `first`.
template <class F>
void for_voxels(const Along& at, const char* op, int64_t scratch_bytes, const F& f) {
  constexpr int64_t multiple = 64;
  const int64_t run = std::max<int64_t>(piece_along / at.count / multiple, 1) * multiple;
  const int64_t runs = (at.inner + run - 1) / run;
  for_each_with_scratch(at.outer * runs, op, scratch_bytes, [&](int64_t piece, char* scratch) {
    const int64_t begin = piece % runs * run;
    f(piece / runs * at.count * at.inner, begin, std::min(begin + run, at.inner), scratch);
  });
}

// f(begin, end, scratch) for rows [begin, end) where inner is 1.
template <class F>
void for_rows(const Along& at, const char* op, int64_t scratch_bytes, const F& f) {
  const int64_t run = std::max<int64_t>(piece_along / at.count, 1);
  for_each_with_scratch((at.outer + run - 1) / run, op, scratch_bytes, [&](int64_t piece, char* scratch) {
    f(piece * run, std::min((piece + 1) * run, at.outer), scratch);
  });
}

// A few rows at a time are turned into channels of voxels and back, in a core's cache.
template <class T>
class Turn {
 public:
  Turn(const Along& at, bool stream)
      : count_(at.count), rows_(rows_of(at)), stream_(stream), transpose_(kernels().best()) {}

  static int64_t rows_of(const Along& at) {
    constexpr int64_t elements = int64_t{1} << 13, multiple = 64;
    return std::max<int64_t>(elements / at.count / multiple, 1) * multiple;
  }
  // Of what is turned.
  int64_t bytes() const { return (rows_ * count_ * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64; }

  void to_channels(const T* rows, T* channels, int64_t count) const {
    transpose_({rows, channels, count, count_, false}, {0, count, 0, count_});
  }
  void to_rows(const T* channels, T* rows, int64_t count) const {
    transpose_({channels, rows, count_, count, stream_}, {0, count_, 0, count});
  }

 private:
  static const isa::KernelTable<layout::Function>& kernels() {
    return sizeof(T) == 2 ? layout::kernels_b2 : sizeof(T) == 4 ? layout::kernels_b4 : layout::kernels_b8;
  }

  int64_t count_, rows_;
  bool stream_;
  layout::Function transpose_;
};

// f(row, rows, scratch) for runs of as many rows as Turn takes.
template <class F>
void for_turned(const Along& at, const char* op, int64_t scratch_bytes, const F& f) {
  const int64_t run = Turn<float>::rows_of(at);
  for_each_with_scratch((at.outer + run - 1) / run, op, scratch_bytes, [&](int64_t piece, char* scratch) {
    f(piece * run, std::min(run, at.outer - piece * run), scratch);
  });
}

}  // namespace volnet

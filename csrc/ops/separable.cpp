#include "ops/separable.h"

#include <limits>

namespace volnet::separable {
namespace {

template <class S, class R, class A>
struct Kernels {
  const isa::KernelTable<Kernel<A>>*plain, *channels_last;
  Kernel<A> plain_any_size;
};

template <class S, class R, class A>
Kernels<S, R, A> kernels();
template <>
Kernels<float, float, float> kernels() {
  return {&plain_f32, &channels_last_f32, {scalar::plain_f32, 1}};
}
template <>
Kernels<bfloat16, bfloat16, float> kernels() {
  return {&plain_bf16, &channels_last_bf16, {scalar::plain_bf16, 1}};
}
template <>
Kernels<double, double, double> kernels() {
  return {&plain_f64, &channels_last_f64, {scalar::plain_f64, 1}};
}
template <>
Kernels<int16_t, int16_t, float> kernels() {
  return {&plain_i16, nullptr, {scalar::plain_i16, 1}};
}
template <>
Kernels<int16_t, float, float> kernels() {
  return {&plain_i16_f32, nullptr, {scalar::plain_i16_f32, 1}};
}
template <>
Kernels<float, int16_t, float> kernels() {
  return {&plain_f32_i16, nullptr, {scalar::plain_f32_i16, 1}};
}

// Params::lanes with their memory.
template <class A>
struct LaneTable {
  Reach reach = Reach::vector;
  std::vector<int64_t> base;
  std::vector<int32_t> lane;
  std::vector<A> weight;

  LaneTable(const Map<A>& map, int64_t width) {
    const int64_t blocks = (map.out + width - 1) / width;
    base.assign(static_cast<size_t>(blocks * map.taps), 0);
    lane.assign(static_cast<size_t>(blocks * map.taps * width), 0);
    weight.assign(lane.size(), 0);
    int64_t widest_span = 0;
    bool complete = true;
    for (int64_t at = 0; at < blocks * map.taps; ++at) {
      const int64_t first = at / map.taps * width, k = at % map.taps;
      int64_t least = std::numeric_limits<int64_t>::max(), most = 0;
      for (int64_t o = first; o < std::min(first + width, map.out); ++o) {
        complete = complete && k < map.count[o];
        if (k >= map.count[o]) continue;
        least = std::min(least, map.index[o * map.taps + k]);
        most = std::max(most, map.index[o * map.taps + k]);
      }
      if (least <= most) base[static_cast<size_t>(at)] = least;
      widest_span = std::max(widest_span, most - least);
    }
    if (widest_span >= 2 * width) {
      reach = Reach::anywhere;
      base.assign(base.size(), 0);
    } else if (widest_span >= width || !complete) {
      reach = Reach::two_vectors;
    }
    for (int64_t at = 0; at < blocks * map.taps; ++at) {
      const int64_t first = at / map.taps * width, k = at % map.taps;
      for (int64_t o = first; o < std::min(first + width, map.out); ++o) {
        const auto to = static_cast<size_t>(at * width + o - first);
        const int64_t missing = reach == Reach::anywhere ? map.in : -1, from = o * map.taps + k;
        const bool present = k < map.count[o];
        lane[to] = static_cast<int32_t>(present ? map.index[from] - base[static_cast<size_t>(at)] : missing);
        if (present) weight[to] = map.weight[from];
      }
    }
  }

  Lanes<A> view() const { return {reach, base.data(), lane.data(), weight.data()}; }
};

// The rows of x that each block of rows of the result needs.
struct Blocks {
  int64_t rows, most = 0;  // rows of a block; rows of x that it needs at most
  std::vector<int64_t> first, last;

  template <class A>
  Blocks(const Map<A>& h, int64_t rows_of_block) : rows(rows_of_block) {
    for (int64_t begin = 0; begin < h.out; begin += rows) {
      int64_t least = h.in, end = 0;
      for (int64_t o = begin; o < std::min(begin + rows, h.out); ++o) {
        for (int64_t k = 0; k < h.count[o]; ++k) {
          least = std::min(least, h.index[o * h.taps + k]);
          end = std::max(end, h.index[o * h.taps + k] + 1);
        }
      }
      first.push_back(std::min(least, end));
      last.push_back(end);
      most = std::max(most, end - first.back());
    }
  }
};

// The more rows in a block, the fewer are summed twice, by neighbouring blocks; but the planes that are
// summed over d, and their sum, should stay in a core's second cache until the next plane of the result.
template <class A>
Blocks choose_blocks(const Map<A>& d, const Map<A>& h, int64_t row_bytes) {
  constexpr int64_t cache = int64_t{1} << 20, least_rows = 4;
  for (int64_t rows = h.out;; rows = (rows + 1) / 2) {
    Blocks blocks(h, rows);
    if (rows <= least_rows || blocks.most * row_bytes * (d.taps + 1) <= cache) return blocks;
  }
}

}  // namespace

template <class S, class R, class A>
void run(const Volume& volume, Layout5 layout, const Maps<A>& maps, const char* op) {
  const Map<A> d = maps.d.map(), h = maps.h.map(), w = maps.w.map();
  // With one channel both layouts are the same memory, and the plain kernel has longer vectors.
  const bool plain = layout == Layout5::plain || volume.channels == 1;
  const int64_t channels = plain ? 1 : volume.channels, images = volume.batch * (plain ? volume.channels : 1);
  const auto available = kernels<S, R, A>();
  const bool vector = !plain || w.in < std::numeric_limits<int32_t>::max() - 2 * widest;
  const Kernel<A> kernel =
      !vector ? available.plain_any_size : (plain ? available.plain : available.channels_last)->best();
  const LaneTable<A> lanes(plain ? w : Map<A>{}, kernel.width);
  // float32 results are as fast as memory either way.
  const bool w_first = plain && sizeof(R) < sizeof(A) && d.out * h.out > d.in * h.in && w.out >= w.in &&
                       fits_w_first(d, lanes.view());
  const Blocks blocks =
      choose_blocks(d, h, (w_first ? w.out : w.in) * channels * static_cast<int64_t>(sizeof(A)));

  // Larger results have left a core's own caches by the time they are read. Streams are of whole vectors, and
  // the part of a line that a row of plain layout leaves is filled by the next row.
  constexpr int64_t stream_from = int64_t{8} << 20, line = 64;
  const auto element = static_cast<int64_t>(sizeof(R));
  const int64_t unit = plain ? kernel.width * element : line, row = w.out * channels;
  const auto whole = [&](int64_t elements) { return elements * element % unit == 0; };
  const bool stream = images * d.out * h.out * row * element >= stream_from &&
                      reinterpret_cast<uintptr_t>(volume.result) % line == 0 &&
                      whole(plain ? row : channels) && whole(volume.row_step) && whole(volume.plane_step) &&
                      whole(volume.image_step);
  const auto count = static_cast<int64_t>(blocks.first.size());
  const Params<A> params{volume.source,
                         volume.result,
                         channels,
                         d,
                         h,
                         w,
                         lanes.view(),
                         blocks.rows,
                         count,
                         blocks.first.data(),
                         blocks.last.data(),
                         volume.image_step,
                         volume.plane_step,
                         volume.row_step,
                         stream,
                         w_first};

  constexpr int64_t piece_elements = int64_t{1} << 16;
  const int64_t slabs = images * count * d.out;
  const int64_t slab_work =
      std::max(blocks.rows * row, blocks.most * w.in * channels * std::max<int64_t>(d.taps, 1));
  // With w first the planes that are kept serve all the slabs of a piece.
  const int64_t least_slabs = w_first ? std::min<int64_t>(d.out, 16) : 1;
  const int64_t slabs_per_piece = std::max(piece_elements / std::max<int64_t>(slab_work, 1), least_slabs);
  const int64_t pieces = (slabs + slabs_per_piece - 1) / slabs_per_piece;
  const int64_t elements = scratch_elements(params);
  const memory::Scratch scratch(worker_count(pieces) * elements * static_cast<int64_t>(sizeof(A)), op);
  for_each_piece(pieces, [&](int64_t piece, int64_t worker) {
    const int64_t begin = piece * slabs_per_piece;
    kernel.run(params, begin, std::min(begin + slabs_per_piece, slabs), scratch.as<A>() + worker * elements);
  });
}

template void run<int16_t, int16_t>(const Volume&, Layout5, const Maps<float>&, const char*);
template void run<int16_t, float>(const Volume&, Layout5, const Maps<float>&, const char*);
template void run<float, int16_t>(const Volume&, Layout5, const Maps<float>&, const char*);
template void run<float, float>(const Volume&, Layout5, const Maps<float>&, const char*);

template <class T>
Tensor apply(const Tensor& input, Layout5 layout, const Maps<compute_t<T>>& maps, const char* op) {
  const Tensor x = to_layout(input, layout, op);
  const int64_t images = x.size(0), channels = x.size(1);
  const int64_t out_d = maps.d.map().out, out_h = maps.h.map().out, out_w = maps.w.map().out;
  const std::vector<int64_t> sizes = {images, channels, out_d, out_h, out_w};
  Tensor y = empty_volume<T>(sizes, layout, op);
  if (numel(sizes) == 0) return y;
  const bool plain = layout == Layout5::plain || channels == 1;
  const int64_t row = out_w * (plain ? 1 : channels);
  run<T, T>(
      {x.const_data_ptr(), y.mutable_data_ptr(), images, channels, out_d * out_h * row, out_h * row, row},
      layout, maps, op);
  return y;
}

template Tensor apply<float>(const Tensor&, Layout5, const Maps<float>&, const char*);
template Tensor apply<bfloat16>(const Tensor&, Layout5, const Maps<float>&, const char*);
template Tensor apply<double>(const Tensor&, Layout5, const Maps<double>&, const char*);

}  // namespace volnet::separable

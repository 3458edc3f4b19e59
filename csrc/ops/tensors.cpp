#include "ops/tensors.h"

#include <pthread.h>

#include "kernels/layout/layout.h"

namespace volnet {
namespace {

// A forked child has none of its parent's threads, and the OpenMP runtime would wait for them: it runs
// serially.
std::atomic<bool> forked{false};
[[maybe_unused]] const int fork_handler =
    pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });

}  // namespace

int64_t worker_count(int64_t pieces) {
  if (forked.load(std::memory_order_relaxed)) return 1;
  return std::clamp<int64_t>(pieces, 1, torch::stable::get_num_threads());
}

void for_each_piece_impl(int64_t pieces, void (*call)(int64_t, int64_t, void*), void* context) {
  const int64_t workers = worker_count(pieces);
  if (workers == 1) {
    for (int64_t piece = 0; piece < pieces; ++piece) call(piece, 0, context);
    return;
  }
  // Neighbouring pieces share data, so a worker takes runs of them; sixteen runs each keep the load even.
  const int64_t run = std::max<int64_t>(pieces / (workers * 16), 1);
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      for (int64_t first; (first = next.fetch_add(run, std::memory_order_relaxed)) < pieces;) {
        const int64_t last = std::min(first + run, pieces);
        for (int64_t piece = first; piece < last; ++piece) call(piece, worker, context);
      }
    }
  });
}

Tensor to_layout(const Tensor& x, Layout5 layout, const char* op) {
  const auto sizes = sizes_of(x);
  const auto plain = contiguous_strides(sizes), last = channels_last_strides(sizes);
  const bool is_plain = has_strides(x, plain), is_last = has_strides(x, last);
  if (layout == Layout5::plain ? is_plain : is_last) return x;
  if (!is_plain && !is_last) return to_layout(torch::stable::contiguous(x), layout, op);

  const auto element_size = static_cast<int64_t>(x.element_size());
  VOLNET_CHECK(element_size == 2 || element_size == 4 || element_size == 8, op,
               ": cannot change the layout of elements of ", element_size, " bytes");
  Tensor y = empty_strided(sizes, layout == Layout5::plain ? plain : last, x.scalar_type(), element_size, op);
  const int64_t channels = sizes[1], voxels = sizes[2] * sizes[3] * sizes[4];
  const bool joins = layout == Layout5::channels_last;
  const int64_t image = channels * voxels * element_size;
  const auto* src = static_cast<const char*>(x.const_data_ptr());
  auto* dst = static_cast<char*>(y.mutable_data_ptr());

  // Few channels are cut into many runs of voxels, many channels into blocks as well: a single image keeps
  // every core busy, and what a piece reads and writes stays in its core's cache.
  constexpr int64_t piece_bytes = int64_t{128} << 10, channel_block = 64;
  const int64_t block = std::min(channels, channel_block);
  const int64_t run = std::max(piece_bytes / (block * element_size) / layout::cut, int64_t{1}) * layout::cut;
  const int64_t blocks = (channels + block - 1) / block, runs = (voxels + run - 1) / run;
  // Larger results have mostly left the cache by the time they are read.
  constexpr int64_t stream_from = int64_t{32} << 20;
  const bool stream = sizes[0] * image >= stream_from;
  const auto& kernels = element_size == 2   ? layout::kernels_b2
                        : element_size == 4 ? layout::kernels_b4
                                            : layout::kernels_b8;
  const auto transpose = kernels.best();
  for_each_piece(sizes[0] * runs * blocks, [&](int64_t piece, int64_t) {
    const int64_t c = piece % blocks * block, v = piece / blocks % runs * run, n = piece / blocks / runs;
    const int64_t c_end = std::min(c + block, channels), v_end = std::min(v + run, voxels);
    transpose(
        {src + n * image, dst + n * image, joins ? channels : voxels, joins ? voxels : channels, stream},
        joins ? layout::Rectangle{c, c_end, v, v_end} : layout::Rectangle{v, v_end, c, c_end});
  });
  return y;
}

}  // namespace volnet

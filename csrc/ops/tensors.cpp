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
  const int64_t voxels = sizes[2] * sizes[3] * sizes[4];
  const int64_t rows = layout == Layout5::plain ? voxels : sizes[1];
  const int64_t columns = layout == Layout5::plain ? sizes[1] : voxels;
  const auto* src = static_cast<const char*>(x.const_data_ptr());
  auto* dst = static_cast<char*>(y.mutable_data_ptr());
  const int64_t image = rows * columns * element_size;
  constexpr int64_t chunk = 4096;  // voxels a piece
  const int64_t chunks = (voxels + chunk - 1) / chunk;
  for_each_piece(sizes[0] * chunks, [&](int64_t piece, int64_t) {
    const int64_t n = piece / chunks, begin = piece % chunks * chunk, end = std::min(begin + chunk, voxels);
    const auto part = layout == Layout5::plain ? layout::Rectangle{begin, end, 0, columns}
                                               : layout::Rectangle{0, rows, begin, end};
    layout::transpose(src + n * image, dst + n * image, rows, columns, part, element_size);
  });
  return y;
}

}  // namespace volnet

#include "kernels/sample_patches/sample_patches.h"

#include <string>

#include "ops/pad_value.h"
#include "ops/tensors.h"

namespace volnet {
namespace {

using sample_patches::Backward;
using sample_patches::BackwardFunction;
using sample_patches::Extent;
using sample_patches::Forward;

// A result larger than this is not in the cache any more when it is read: it is stored past it.
constexpr int64_t stream_from = int64_t{16} << 20;
// Work for one thread at a time: long enough to hide the counter, short enough to share among many cores.
constexpr int64_t piece_bytes = int64_t{128} << 10;

Extent extent(const std::vector<int64_t>& sizes) {
  const size_t n = sizes.size();
  return {sizes[n - 3], sizes[n - 2], sizes[n - 1]};
}

void check_centers(const Tensor& centers) {
  VOLNET_CHECK(centers.dim() == 2 && centers.size(1) == 3 && centers.scalar_type() == ScalarType::Long,
               "sample_patches: centers must be int64 [P, 3], got shape ", shape_text(sizes_of(centers)));
}

// [P, C, *size], without C for a volume without.
Tensor forward(Tensor volume, Tensor centers, std::vector<int64_t> size, double pad_value) {
  VOLNET_CHECK(volume.dim() == 3 || volume.dim() == 4,
               "sample_patches: volume must be [D, H, W] or [C, D, H, W], got shape ",
               shape_text(sizes_of(volume)));
  VOLNET_CHECK(size.size() == 3 && size[0] > 0 && size[1] > 0 && size[2] > 0,
               "sample_patches: size must be three positive numbers, got ", shape_text(size));
  check_centers(centers);

  centers = torch::stable::contiguous(centers);
  const int64_t w = volume.dim() - 1;
  if (volume.size(w) > 1 && volume.stride(w) != 1) volume = torch::stable::contiguous(volume);
  const auto volume_sizes = sizes_of(volume);
  std::vector<int64_t> sizes{centers.size(0)};
  if (volume.dim() == 4) sizes.push_back(volume.size(0));
  sizes.insert(sizes.end(), size.begin(), size.end());
  const auto element_size = static_cast<int64_t>(volume.element_size());
  Tensor patches =
      empty_strided(sizes, contiguous_strides(sizes), volume.scalar_type(), element_size, "sample_patches");
  if (patches.numel() == 0) return patches;

  const Forward f{.volume = static_cast<const char*>(volume.const_data_ptr()),
                  .channels = volume.dim() == 4 ? volume.size(0) : 1,
                  .extent = extent(volume_sizes),
                  .stride_c = volume.dim() == 4 ? volume.stride(0) * element_size : 0,
                  .stride_d = volume.stride(w - 2) * element_size,
                  .stride_h = volume.stride(w - 1) * element_size,
                  .centers = data<int64_t>(centers),
                  .patches = static_cast<char*>(patches.mutable_data_ptr()),
                  .size = extent(size),
                  .element_size = element_size,
                  .pad = pad_bytes(volume.scalar_type(), pad_value, "sample_patches"),
                  .stream = numel(sizes) * element_size >= stream_from};
  const int64_t slices = centers.size(0) * f.channels * f.size.d;
  const int64_t each = std::max<int64_t>(1, piece_bytes / (f.size.h * f.size.w * element_size));
  const auto run = sample_patches::forward_kernels.best();
  for_each_piece((slices + each - 1) / each,
                 [&](int64_t piece, int64_t) { run(f, piece * each, std::min((piece + 1) * each, slices)); });
  return patches;
}

template <class T>
Tensor backward_typed(const Tensor& grad, const Tensor& centers, const std::vector<int64_t>& volume_sizes,
                      BackwardFunction<T> run) {
  Tensor volume_grad = empty_plain<T>(volume_sizes, "sample_patches backward");
  if (volume_grad.numel() == 0) return volume_grad;
  const Backward<T> b{.grad = data<T>(grad),
                      .centers = data<int64_t>(centers),
                      .patches = centers.size(0),
                      .channels = volume_sizes.size() == 4 ? volume_sizes[0] : 1,
                      .extent = extent(volume_sizes),
                      .size = extent(sizes_of(grad)),
                      .volume_grad = mutable_data<T>(volume_grad)};
  const int64_t planes = b.channels * b.extent.d;
  const auto covering_bytes = (b.patches * static_cast<int64_t>(sizeof(int64_t)) + 63) / 64 * 64;
  const auto row_bytes = (b.extent.w * static_cast<int64_t>(sizeof(compute_t<T>)) + 63) / 64 * 64;
  const memory::Scratch scratch(worker_count(planes) * (covering_bytes + row_bytes),
                                "sample_patches backward");
  for_each_piece(planes, [&](int64_t plane, int64_t worker) {
    char* mine = scratch.as<char>() + worker * (covering_bytes + row_bytes);
    run(b, plane, reinterpret_cast<int64_t*>(mine), reinterpret_cast<compute_t<T>*>(mine + covering_bytes));
  });
  return volume_grad;
}

// grad [P, C, *size] or [P, *size] -> the gradient of the volume with these sizes.
Tensor backward(Tensor grad, Tensor centers, std::vector<int64_t> volume_sizes) {
  check_centers(centers);
  VOLNET_CHECK(grad.dim() == static_cast<int64_t>(volume_sizes.size()) + 1 &&
                   (grad.dim() == 4 || (grad.dim() == 5 && grad.size(1) == volume_sizes[0])) &&
                   grad.size(0) == centers.size(0),
               "sample_patches backward: grad ", shape_text(sizes_of(grad)), " does not belong to a volume ",
               shape_text(volume_sizes), " and ", centers.size(0), " centers");
  grad = torch::stable::contiguous(grad);
  centers = torch::stable::contiguous(centers);
  switch (grad.scalar_type()) {
    case ScalarType::Float:
      return backward_typed<float>(grad, centers, volume_sizes, sample_patches::backward_f32_kernels.best());
    case ScalarType::BFloat16:
      return backward_typed<bfloat16>(grad, centers, volume_sizes,
                                      sample_patches::backward_bf16_kernels.best());
    case ScalarType::Double:
      return backward_typed<double>(grad, centers, volume_sizes, sample_patches::backward_f64_kernels.best());
    default:
      VOLNET_CHECK(false, "sample_patches backward: grad must be float32, float64 or bfloat16");
  }
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(volnet, m) {
  m.def("sample_patches(Tensor volume, Tensor centers, int[] size, float pad_value) -> Tensor");
  m.def("_sample_patches_backward(Tensor grad, Tensor centers, int[] volume_size) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(volnet, CPU, m) {
  m.impl("sample_patches", TORCH_BOX(&forward));
  m.impl("_sample_patches_backward", TORCH_BOX(&backward));
}

}  // namespace volnet

#include "kernels/max_pool3d/max_pool3d.h"

#include <algorithm>

namespace volnet::max_pool3d {

using isa::Level;

int64_t padded_outputs(const Params& p) { return (p.w.out + widest - 1) / widest * widest; }

// Vectors are read past the last output of a row, up to the widest Vec; two of them where the stride is 2.
int64_t padded_row(const Params& p) {
  const int64_t read =
      p.w.windows ? p.w.in + widest : (padded_outputs(p) - 1) * p.w.stride + pooling::span(p.w) + 1 + widest;
  return (std::max(p.w.padding + p.w.in, read) + widest - 1) / widest * widest;
}

int64_t scratch_bytes(const Params& p) {
  const int64_t table = p.w.windows ? p.w.kernel * padded_outputs(p) : 0;
  return (2 * padded_row(p) + padded_outputs(p) + table) * static_cast<int64_t>(sizeof(float));
}

int64_t gather_scratch(const BackwardParams& p) {
  if (p.channels > 1) return 2 * pooling::round_up(p.w.in) + pooling::round_up(p.w.in * p.channels) + widest;
  return pooling::rows_at_once(p.w) * p.w.kernel * pooling::spread_row_length(p.w) +
         pooling::round_up(p.w.out) + pooling::spread_table_length(p.w) + pooling::spread_result_length(p.w);
}

bool fits_vector(const Params& p) {
  constexpr int64_t most = int64_t{1} << 30, longest_row = int64_t{1} << 22;
  const auto reach = [](const pooling::Axis& a) { return std::min(pooling::span(a), a.in); };
  return ((reach(p.d) + 1) * p.h.in + reach(p.h) + 1) * p.w.in < most && padded_row(p) < longest_row;
}

const isa::KernelTable<Forward> forward_plain_f32{
    {"max_pool3d_f32_plain_scalar", Level::scalar, scalar::forward_plain_f32},
    {"max_pool3d_f32_plain_avx2", Level::avx2, avx2::forward_plain_f32},
    {"max_pool3d_f32_plain_avx512", Level::avx512, avx512::forward_plain_f32}};
const isa::KernelTable<Forward> forward_plain_bf16{
    {"max_pool3d_bf16_plain_scalar", Level::scalar, scalar::forward_plain_bf16},
    {"max_pool3d_bf16_plain_avx2", Level::avx2, avx2::forward_plain_bf16},
    {"max_pool3d_bf16_plain_avx512", Level::avx512, avx512::forward_plain_bf16}};
const isa::KernelTable<Forward> forward_plain_f64{
    {"max_pool3d_f64_plain_scalar", Level::scalar, scalar::forward_plain_f64}};

const isa::KernelTable<Forward> forward_channels_last_f32{
    {"max_pool3d_f32_channels_last_scalar", Level::scalar, scalar::forward_channels_last_f32},
    {"max_pool3d_f32_channels_last_avx2", Level::avx2, avx2::forward_channels_last_f32},
    {"max_pool3d_f32_channels_last_avx512", Level::avx512, avx512::forward_channels_last_f32}};
const isa::KernelTable<Forward> forward_channels_last_bf16{
    {"max_pool3d_bf16_channels_last_scalar", Level::scalar, scalar::forward_channels_last_bf16},
    {"max_pool3d_bf16_channels_last_avx2", Level::avx2, avx2::forward_channels_last_bf16},
    {"max_pool3d_bf16_channels_last_avx512", Level::avx512, avx512::forward_channels_last_bf16}};
const isa::KernelTable<Forward> forward_channels_last_f64{
    {"max_pool3d_f64_channels_last_scalar", Level::scalar, scalar::forward_channels_last_f64}};

const isa::KernelTable<Gather> backward_gather_f32{
    {"max_pool3d_backward_f32_gather_scalar", Level::scalar, scalar::backward_gather_f32},
    {"max_pool3d_backward_f32_gather_avx2", Level::avx2, avx2::backward_gather_f32},
    {"max_pool3d_backward_f32_gather_avx512", Level::avx512, avx512::backward_gather_f32}};
const isa::KernelTable<Gather> backward_gather_bf16{
    {"max_pool3d_backward_bf16_gather_scalar", Level::scalar, scalar::backward_gather_bf16},
    {"max_pool3d_backward_bf16_gather_avx2", Level::avx2, avx2::backward_gather_bf16},
    {"max_pool3d_backward_bf16_gather_avx512", Level::avx512, avx512::backward_gather_bf16}};
const isa::KernelTable<Gather> backward_gather_f64{
    {"max_pool3d_backward_f64_gather_scalar", Level::scalar, scalar::backward_gather_f64}};

const isa::KernelTable<Sparse> backward_sparse_f32{
    {"max_pool3d_backward_f32_sparse_scalar", Level::scalar, scalar::backward_sparse_f32},
    {"max_pool3d_backward_f32_sparse_avx2", Level::avx2, avx2::backward_sparse_f32},
    {"max_pool3d_backward_f32_sparse_avx512", Level::avx512, avx512::backward_sparse_f32}};
const isa::KernelTable<Sparse> backward_sparse_bf16{
    {"max_pool3d_backward_bf16_sparse_scalar", Level::scalar, scalar::backward_sparse_bf16},
    {"max_pool3d_backward_bf16_sparse_avx2", Level::avx2, avx2::backward_sparse_bf16},
    {"max_pool3d_backward_bf16_sparse_avx512", Level::avx512, avx512::backward_sparse_bf16}};
const isa::KernelTable<Sparse> backward_sparse_f64{
    {"max_pool3d_backward_f64_sparse_scalar", Level::scalar, scalar::backward_sparse_f64}};

const isa::KernelTable<Scatter> backward_scatter_f32{
    {"max_pool3d_backward_f32_scatter_scalar", Level::scalar, scalar::backward_scatter_f32},
    {"max_pool3d_backward_f32_scatter_avx2", Level::avx2, avx2::backward_scatter_f32},
    {"max_pool3d_backward_f32_scatter_avx512", Level::avx512, avx512::backward_scatter_f32}};
const isa::KernelTable<Scatter> backward_scatter_bf16{
    {"max_pool3d_backward_bf16_scatter_scalar", Level::scalar, scalar::backward_scatter_bf16},
    {"max_pool3d_backward_bf16_scatter_avx2", Level::avx2, avx2::backward_scatter_bf16},
    {"max_pool3d_backward_bf16_scatter_avx512", Level::avx512, avx512::backward_scatter_bf16}};
const isa::KernelTable<Scatter> backward_scatter_f64{
    {"max_pool3d_backward_f64_scatter_scalar", Level::scalar, scalar::backward_scatter_f64}};

}  // namespace volnet::max_pool3d

#include "kernels/avg_pool3d/avg_pool3d.h"

namespace volnet::avg_pool3d {

using isa::Level;

int64_t forward_row(const Params& p) {
  if (p.w.windows) return round_up(p.w.in + widest);
  const int64_t read = (round_up(p.w.out) - 1) * p.w.stride + p.w.kernel + widest;
  return round_up(std::max(p.w.padding + p.w.in + widest, read));
}

bool sums_runs(const pooling::Axis& a) { return a.kernel >= widest && (a.windows || a.stride > 2); }

bool gathers_windows(const pooling::Axis& a) { return a.windows && !sums_runs(a); }

int64_t forward_scratch(const Params& p, bool plain) {
  const int64_t table = gathers_windows(p.w) ? p.w.kernel * round_up(p.w.out) : 0;
  return plain ? forward_row(p) + round_up(p.w.out) + table : 0;
}

int64_t backward_sums(const Params& p, bool plain) {
  return plain ? pooling::rows_at_once(p.w) * pooling::spread_row_length(p.w)
               : round_up(p.w.out * p.channels) + widest;
}

int64_t backward_row(const Params& p, bool plain) {
  return plain ? pooling::spread_result_length(p.w) : round_up(p.w.in * p.channels) + widest;
}

int64_t backward_scratch(const Params& p, bool plain) {
  const int64_t table = plain ? pooling::spread_table_length(p.w) : 2 * round_up(p.w.in);
  return backward_sums(p, plain) + round_up(p.d.out) + round_up(p.h.out) + round_up(p.w.out) +
         backward_row(p, plain) + table;
}

bool fits_vector(const Params& p, bool plain) {
  constexpr int64_t most = int64_t{1} << 24;
  return p.w.kernel < most && forward_scratch(p, plain) < most && backward_scratch(p, plain) < most;
}

const isa::KernelTable<Kernel> forward_plain_f32{
    {"avg_pool3d_f32_plain_scalar", Level::scalar, scalar::forward_plain_f32},
    {"avg_pool3d_f32_plain_avx2", Level::avx2, avx2::forward_plain_f32},
    {"avg_pool3d_f32_plain_avx512", Level::avx512, avx512::forward_plain_f32}};
const isa::KernelTable<Kernel> forward_plain_bf16{
    {"avg_pool3d_bf16_plain_scalar", Level::scalar, scalar::forward_plain_bf16},
    {"avg_pool3d_bf16_plain_avx2", Level::avx2, avx2::forward_plain_bf16},
    {"avg_pool3d_bf16_plain_avx512", Level::avx512, avx512::forward_plain_bf16}};
const isa::KernelTable<Kernel> forward_plain_f64{
    {"avg_pool3d_f64_plain_scalar", Level::scalar, scalar::forward_plain_f64}};

const isa::KernelTable<Kernel> forward_channels_last_f32{
    {"avg_pool3d_f32_channels_last_scalar", Level::scalar, scalar::forward_channels_last_f32},
    {"avg_pool3d_f32_channels_last_avx2", Level::avx2, avx2::forward_channels_last_f32},
    {"avg_pool3d_f32_channels_last_avx512", Level::avx512, avx512::forward_channels_last_f32}};
const isa::KernelTable<Kernel> forward_channels_last_bf16{
    {"avg_pool3d_bf16_channels_last_scalar", Level::scalar, scalar::forward_channels_last_bf16},
    {"avg_pool3d_bf16_channels_last_avx2", Level::avx2, avx2::forward_channels_last_bf16},
    {"avg_pool3d_bf16_channels_last_avx512", Level::avx512, avx512::forward_channels_last_bf16}};
const isa::KernelTable<Kernel> forward_channels_last_f64{
    {"avg_pool3d_f64_channels_last_scalar", Level::scalar, scalar::forward_channels_last_f64}};

const isa::KernelTable<Kernel> backward_plain_f32{
    {"avg_pool3d_backward_f32_plain_scalar", Level::scalar, scalar::backward_plain_f32},
    {"avg_pool3d_backward_f32_plain_avx2", Level::avx2, avx2::backward_plain_f32},
    {"avg_pool3d_backward_f32_plain_avx512", Level::avx512, avx512::backward_plain_f32}};
const isa::KernelTable<Kernel> backward_plain_bf16{
    {"avg_pool3d_backward_bf16_plain_scalar", Level::scalar, scalar::backward_plain_bf16},
    {"avg_pool3d_backward_bf16_plain_avx2", Level::avx2, avx2::backward_plain_bf16},
    {"avg_pool3d_backward_bf16_plain_avx512", Level::avx512, avx512::backward_plain_bf16}};
const isa::KernelTable<Kernel> backward_plain_f64{
    {"avg_pool3d_backward_f64_plain_scalar", Level::scalar, scalar::backward_plain_f64}};

const isa::KernelTable<Kernel> backward_channels_last_f32{
    {"avg_pool3d_backward_f32_channels_last_scalar", Level::scalar, scalar::backward_channels_last_f32},
    {"avg_pool3d_backward_f32_channels_last_avx2", Level::avx2, avx2::backward_channels_last_f32},
    {"avg_pool3d_backward_f32_channels_last_avx512", Level::avx512, avx512::backward_channels_last_f32}};
const isa::KernelTable<Kernel> backward_channels_last_bf16{
    {"avg_pool3d_backward_bf16_channels_last_scalar", Level::scalar, scalar::backward_channels_last_bf16},
    {"avg_pool3d_backward_bf16_channels_last_avx2", Level::avx2, avx2::backward_channels_last_bf16},
    {"avg_pool3d_backward_bf16_channels_last_avx512", Level::avx512, avx512::backward_channels_last_bf16}};
const isa::KernelTable<Kernel> backward_channels_last_f64{
    {"avg_pool3d_backward_f64_channels_last_scalar", Level::scalar, scalar::backward_channels_last_f64}};

}  // namespace volnet::avg_pool3d

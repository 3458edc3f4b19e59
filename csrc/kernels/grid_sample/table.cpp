#include "kernels/grid_sample/grid_sample.h"

#include <limits>

namespace volnet::grid_sample {

using isa::Level;

bool fits_plain(const Params& p) { return p.d * p.h * p.w <= std::numeric_limits<int32_t>::max(); }

const isa::KernelTable<Kernel> forward_f32{{"grid_sample_f32_scalar", Level::scalar, scalar::forward_f32},
                                           {"grid_sample_f32_avx2", Level::avx2, avx2::forward_f32},
                                           {"grid_sample_f32_avx512", Level::avx512, avx512::forward_f32}};
const isa::KernelTable<Kernel> forward_bf16{{"grid_sample_bf16_scalar", Level::scalar, scalar::forward_bf16},
                                            {"grid_sample_bf16_avx2", Level::avx2, avx2::forward_bf16},
                                            {"grid_sample_bf16_avx512", Level::avx512, avx512::forward_bf16}};
const isa::KernelTable<Kernel> forward_f64{{"grid_sample_f64_scalar", Level::scalar, scalar::forward_f64}};
const isa::KernelTable<ScatterKernel> backward_input_f32{
    {"grid_sample_backward_input_f32_scalar", Level::scalar, scalar::backward_input_f32},
    {"grid_sample_backward_input_f32_avx2", Level::avx2, avx2::backward_input_f32},
    {"grid_sample_backward_input_f32_avx512", Level::avx512, avx512::backward_input_f32}};
const isa::KernelTable<ScatterKernel> backward_input_bf16{
    {"grid_sample_backward_input_bf16_scalar", Level::scalar, scalar::backward_input_bf16},
    {"grid_sample_backward_input_bf16_avx2", Level::avx2, avx2::backward_input_bf16},
    {"grid_sample_backward_input_bf16_avx512", Level::avx512, avx512::backward_input_bf16}};
const isa::KernelTable<ScatterKernel> backward_input_f64{
    {"grid_sample_backward_input_f64_scalar", Level::scalar, scalar::backward_input_f64}};
const isa::KernelTable<Kernel> backward_grid_f32{
    {"grid_sample_backward_grid_f32_scalar", Level::scalar, scalar::backward_grid_f32},
    {"grid_sample_backward_grid_f32_avx2", Level::avx2, avx2::backward_grid_f32},
    {"grid_sample_backward_grid_f32_avx512", Level::avx512, avx512::backward_grid_f32}};
const isa::KernelTable<Kernel> backward_grid_bf16{
    {"grid_sample_backward_grid_bf16_scalar", Level::scalar, scalar::backward_grid_bf16},
    {"grid_sample_backward_grid_bf16_avx2", Level::avx2, avx2::backward_grid_bf16},
    {"grid_sample_backward_grid_bf16_avx512", Level::avx512, avx512::backward_grid_bf16}};
const isa::KernelTable<Kernel> backward_grid_f64{
    {"grid_sample_backward_grid_f64_scalar", Level::scalar, scalar::backward_grid_f64}};
const isa::KernelTable<Kernel> forward_plain_f32{
    {"grid_sample_f32_plain_scalar", Level::scalar, scalar::forward_plain_f32},
    {"grid_sample_f32_plain_avx2", Level::avx2, avx2::forward_plain_f32},
    {"grid_sample_f32_plain_avx512", Level::avx512, avx512::forward_plain_f32}};
const isa::KernelTable<Kernel> backward_grid_plain_f32{
    {"grid_sample_backward_grid_f32_plain_scalar", Level::scalar, scalar::backward_grid_plain_f32},
    {"grid_sample_backward_grid_f32_plain_avx2", Level::avx2, avx2::backward_grid_plain_f32},
    {"grid_sample_backward_grid_f32_plain_avx512", Level::avx512, avx512::backward_grid_plain_f32}};

}  // namespace volnet::grid_sample

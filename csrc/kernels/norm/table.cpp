#include "kernels/norm/norm.h"

namespace volnet::norm {

using isa::Level;

const isa::KernelTable<Kernel> moments_f32{{"norm_moments_f32_scalar", Level::scalar, scalar::moments_f32},
                                           {"norm_moments_f32_avx2", Level::avx2, avx2::moments_f32},
                                           {"norm_moments_f32_avx512", Level::avx512, avx512::moments_f32}};
const isa::KernelTable<Kernel> moments_bf16{
    {"norm_moments_bf16_scalar", Level::scalar, scalar::moments_bf16},
    {"norm_moments_bf16_avx2", Level::avx2, avx2::moments_bf16},
    {"norm_moments_bf16_avx512", Level::avx512, avx512::moments_bf16}};
const isa::KernelTable<Kernel> moments_f64{{"norm_moments_f64_scalar", Level::scalar, scalar::moments_f64}};

const isa::KernelTable<Kernel> apply_f32{{"norm_apply_f32_scalar", Level::scalar, scalar::apply_f32},
                                         {"norm_apply_f32_avx2", Level::avx2, avx2::apply_f32},
                                         {"norm_apply_f32_avx512", Level::avx512, avx512::apply_f32}};
const isa::KernelTable<Kernel> apply_bf16{{"norm_apply_bf16_scalar", Level::scalar, scalar::apply_bf16},
                                          {"norm_apply_bf16_avx2", Level::avx2, avx2::apply_bf16},
                                          {"norm_apply_bf16_avx512", Level::avx512, avx512::apply_bf16}};
const isa::KernelTable<Kernel> apply_f64{{"norm_apply_f64_scalar", Level::scalar, scalar::apply_f64}};

const isa::KernelTable<Kernel> gradient_sums_f32{
    {"norm_gradient_sums_f32_scalar", Level::scalar, scalar::gradient_sums_f32},
    {"norm_gradient_sums_f32_avx2", Level::avx2, avx2::gradient_sums_f32},
    {"norm_gradient_sums_f32_avx512", Level::avx512, avx512::gradient_sums_f32}};
const isa::KernelTable<Kernel> gradient_sums_bf16{
    {"norm_gradient_sums_bf16_scalar", Level::scalar, scalar::gradient_sums_bf16},
    {"norm_gradient_sums_bf16_avx2", Level::avx2, avx2::gradient_sums_bf16},
    {"norm_gradient_sums_bf16_avx512", Level::avx512, avx512::gradient_sums_bf16}};
const isa::KernelTable<Kernel> gradient_sums_f64{
    {"norm_gradient_sums_f64_scalar", Level::scalar, scalar::gradient_sums_f64}};

const isa::KernelTable<Kernel> gradient_f32{
    {"norm_gradient_f32_scalar", Level::scalar, scalar::gradient_f32},
    {"norm_gradient_f32_avx2", Level::avx2, avx2::gradient_f32},
    {"norm_gradient_f32_avx512", Level::avx512, avx512::gradient_f32}};
const isa::KernelTable<Kernel> gradient_bf16{
    {"norm_gradient_bf16_scalar", Level::scalar, scalar::gradient_bf16},
    {"norm_gradient_bf16_avx2", Level::avx2, avx2::gradient_bf16},
    {"norm_gradient_bf16_avx512", Level::avx512, avx512::gradient_bf16}};
const isa::KernelTable<Kernel> gradient_f64{
    {"norm_gradient_f64_scalar", Level::scalar, scalar::gradient_f64}};

}  // namespace volnet::norm

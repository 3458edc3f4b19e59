#include "kernels/smooth_l1/smooth_l1.h"

namespace volnet::smooth_l1 {

using isa::Level;

const isa::KernelTable<Kernel<Forward>> forward_f32{
    {"smooth_l1_forward_f32_scalar", Level::scalar, scalar::forward_f32},
    {"smooth_l1_forward_f32_avx2", Level::avx2, avx2::forward_f32},
    {"smooth_l1_forward_f32_avx512", Level::avx512, avx512::forward_f32}};

const isa::KernelTable<Kernel<Forward>> forward_bf16{
    {"smooth_l1_forward_bf16_scalar", Level::scalar, scalar::forward_bf16},
    {"smooth_l1_forward_bf16_avx2", Level::avx2, avx2::forward_bf16},
    {"smooth_l1_forward_bf16_avx512", Level::avx512, avx512::forward_bf16}};

const isa::KernelTable<Kernel<Forward>> forward_f64{
    {"smooth_l1_forward_f64_scalar", Level::scalar, scalar::forward_f64}};

const isa::KernelTable<Kernel<Backward>> backward_f32{
    {"smooth_l1_backward_f32_scalar", Level::scalar, scalar::backward_f32},
    {"smooth_l1_backward_f32_avx2", Level::avx2, avx2::backward_f32},
    {"smooth_l1_backward_f32_avx512", Level::avx512, avx512::backward_f32}};

const isa::KernelTable<Kernel<Backward>> backward_bf16{
    {"smooth_l1_backward_bf16_scalar", Level::scalar, scalar::backward_bf16},
    {"smooth_l1_backward_bf16_avx2", Level::avx2, avx2::backward_bf16},
    {"smooth_l1_backward_bf16_avx512", Level::avx512, avx512::backward_bf16}};

const isa::KernelTable<Kernel<Backward>> backward_f64{
    {"smooth_l1_backward_f64_scalar", Level::scalar, scalar::backward_f64}};

}  // namespace volnet::smooth_l1

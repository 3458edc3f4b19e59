#include "kernels/roi_pool3d/roi_pool3d.h"

namespace volnet::roi_pool3d {

using isa::Level;

const isa::KernelTable<ForwardFunction<float>> forward_f32{
    {"roi_pool3d_f32_scalar", Level::scalar, scalar::forward_f32},
    {"roi_pool3d_f32_avx2", Level::avx2, avx2::forward_f32},
    {"roi_pool3d_f32_avx512", Level::avx512, avx512::forward_f32}};
const isa::KernelTable<ForwardFunction<bfloat16>> forward_bf16{
    {"roi_pool3d_bf16_scalar", Level::scalar, scalar::forward_bf16},
    {"roi_pool3d_bf16_avx2", Level::avx2, avx2::forward_bf16},
    {"roi_pool3d_bf16_avx512", Level::avx512, avx512::forward_bf16}};
const isa::KernelTable<ForwardFunction<double>> forward_f64{
    {"roi_pool3d_f64_scalar", Level::scalar, scalar::forward_f64}};

}  // namespace volnet::roi_pool3d

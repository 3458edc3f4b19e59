#include "kernels/roi_crop3d/roi_crop3d.h"

namespace volnet::roi_crop3d {

using isa::Level;

const isa::KernelTable<BackwardFunction<float>> backward_f32{
    {"roi_crop3d_backward_f32_scalar", Level::scalar, scalar::backward_f32},
    {"roi_crop3d_backward_f32_avx2", Level::avx2, avx2::backward_f32},
    {"roi_crop3d_backward_f32_avx512", Level::avx512, avx512::backward_f32}};
const isa::KernelTable<BackwardFunction<bfloat16>> backward_bf16{
    {"roi_crop3d_backward_bf16_scalar", Level::scalar, scalar::backward_bf16},
    {"roi_crop3d_backward_bf16_avx2", Level::avx2, avx2::backward_bf16},
    {"roi_crop3d_backward_bf16_avx512", Level::avx512, avx512::backward_bf16}};
const isa::KernelTable<BackwardFunction<double>> backward_f64{
    {"roi_crop3d_backward_f64_scalar", Level::scalar, scalar::backward_f64}};

}  // namespace volnet::roi_crop3d

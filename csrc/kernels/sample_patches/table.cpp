#include "kernels/sample_patches/sample_patches.h"

namespace volnet::sample_patches {

using isa::Level;

const isa::KernelTable<ForwardFunction> forward_kernels{
    {"sample_patches_bytes_scalar", Level::scalar, scalar::forward},
    {"sample_patches_bytes_avx2", Level::avx2, avx2::forward},
    {"sample_patches_bytes_avx512", Level::avx512, avx512::forward},
};
const isa::KernelTable<BackwardFunction<float>> backward_f32_kernels{
    {"sample_patches_backward_f32_scalar", Level::scalar, scalar::backward_f32},
    {"sample_patches_backward_f32_avx2", Level::avx2, avx2::backward_f32},
    {"sample_patches_backward_f32_avx512", Level::avx512, avx512::backward_f32},
};
const isa::KernelTable<BackwardFunction<bfloat16>> backward_bf16_kernels{
    {"sample_patches_backward_bf16_scalar", Level::scalar, scalar::backward_bf16},
    {"sample_patches_backward_bf16_avx2", Level::avx2, avx2::backward_bf16},
    {"sample_patches_backward_bf16_avx512", Level::avx512, avx512::backward_bf16},
};
const isa::KernelTable<BackwardFunction<double>> backward_f64_kernels{
    {"sample_patches_backward_f64_scalar", Level::scalar, scalar::backward_f64},
};

}  // namespace volnet::sample_patches

#include "kernels/layer_norm/layer_norm.h"

namespace volnet::layer_norm {

using isa::Level;

const isa::KernelTable<Kernel> forward_f32{{"layer_norm_f32_scalar", Level::scalar, scalar::forward_f32},
                                           {"layer_norm_f32_avx2", Level::avx2, avx2::forward_f32},
                                           {"layer_norm_f32_avx512", Level::avx512, avx512::forward_f32}};
const isa::KernelTable<Kernel> forward_bf16{{"layer_norm_bf16_scalar", Level::scalar, scalar::forward_bf16},
                                            {"layer_norm_bf16_avx2", Level::avx2, avx2::forward_bf16},
                                            {"layer_norm_bf16_avx512", Level::avx512, avx512::forward_bf16}};
const isa::KernelTable<Kernel> forward_f64{{"layer_norm_f64_scalar", Level::scalar, scalar::forward_f64}};

const isa::KernelTable<Kernel> backward_f32{
    {"layer_norm_backward_f32_scalar", Level::scalar, scalar::backward_f32},
    {"layer_norm_backward_f32_avx2", Level::avx2, avx2::backward_f32},
    {"layer_norm_backward_f32_avx512", Level::avx512, avx512::backward_f32}};
const isa::KernelTable<Kernel> backward_bf16{
    {"layer_norm_backward_bf16_scalar", Level::scalar, scalar::backward_bf16},
    {"layer_norm_backward_bf16_avx2", Level::avx2, avx2::backward_bf16},
    {"layer_norm_backward_bf16_avx512", Level::avx512, avx512::backward_bf16}};
const isa::KernelTable<Kernel> backward_f64{
    {"layer_norm_backward_f64_scalar", Level::scalar, scalar::backward_f64}};

}  // namespace volnet::layer_norm

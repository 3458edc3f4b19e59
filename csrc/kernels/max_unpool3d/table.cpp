#include "kernels/max_unpool3d/max_unpool3d.h"

namespace volnet::max_unpool3d {

using isa::Level;

const isa::KernelTable<Forward> forward_f32{{"max_unpool3d_f32_scalar", Level::scalar, scalar::forward_f32},
                                            {"max_unpool3d_f32_avx2", Level::avx2, avx2::forward_f32},
                                            {"max_unpool3d_f32_avx512", Level::avx512, avx512::forward_f32}};
const isa::KernelTable<Forward> forward_bf16{
    {"max_unpool3d_bf16_scalar", Level::scalar, scalar::forward_bf16},
    {"max_unpool3d_bf16_avx2", Level::avx2, avx2::forward_bf16},
    {"max_unpool3d_bf16_avx512", Level::avx512, avx512::forward_bf16}};
const isa::KernelTable<Forward> forward_f64{{"max_unpool3d_f64_scalar", Level::scalar, scalar::forward_f64}};

const isa::KernelTable<Backward> backward_f32{
    {"max_unpool3d_backward_f32_scalar", Level::scalar, scalar::backward_f32},
    {"max_unpool3d_backward_f32_avx2", Level::avx2, avx2::backward_f32},
    {"max_unpool3d_backward_f32_avx512", Level::avx512, avx512::backward_f32}};
const isa::KernelTable<Backward> backward_bf16{
    {"max_unpool3d_backward_bf16_scalar", Level::scalar, scalar::backward_bf16},
    {"max_unpool3d_backward_bf16_avx2", Level::avx2, avx2::backward_bf16},
    {"max_unpool3d_backward_bf16_avx512", Level::avx512, avx512::backward_bf16}};
const isa::KernelTable<Backward> backward_f64{
    {"max_unpool3d_backward_f64_scalar", Level::scalar, scalar::backward_f64}};

}  // namespace volnet::max_unpool3d

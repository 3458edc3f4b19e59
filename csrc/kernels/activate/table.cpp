#include "kernels/activate/activate.h"

namespace volnet::activate {

using isa::Level;

const isa::KernelTable<Kernel<Forward>> forward_f32{
    {"activate_f32_scalar", Level::scalar, scalar::forward_f32},
    {"activate_f32_avx2", Level::avx2, avx2::forward_f32},
    {"activate_f32_avx512", Level::avx512, avx512::forward_f32}};
const isa::KernelTable<Kernel<Forward>> forward_bf16{
    {"activate_bf16_scalar", Level::scalar, scalar::forward_bf16},
    {"activate_bf16_avx2", Level::avx2, avx2::forward_bf16},
    {"activate_bf16_avx512", Level::avx512, avx512::forward_bf16}};
const isa::KernelTable<Kernel<Forward>> forward_f64{
    {"activate_f64_scalar", Level::scalar, scalar::forward_f64}};

const isa::KernelTable<Kernel<Backward>> backward_f32{
    {"activate_backward_f32_scalar", Level::scalar, scalar::backward_f32},
    {"activate_backward_f32_avx2", Level::avx2, avx2::backward_f32},
    {"activate_backward_f32_avx512", Level::avx512, avx512::backward_f32}};
const isa::KernelTable<Kernel<Backward>> backward_bf16{
    {"activate_backward_bf16_scalar", Level::scalar, scalar::backward_bf16},
    {"activate_backward_bf16_avx2", Level::avx2, avx2::backward_bf16},
    {"activate_backward_bf16_avx512", Level::avx512, avx512::backward_bf16}};
const isa::KernelTable<Kernel<Backward>> backward_f64{
    {"activate_backward_f64_scalar", Level::scalar, scalar::backward_f64}};

const isa::KernelTable<Kernel<Prelu>> prelu_f32{{"prelu_f32_scalar", Level::scalar, scalar::prelu_f32},
                                                {"prelu_f32_avx2", Level::avx2, avx2::prelu_f32},
                                                {"prelu_f32_avx512", Level::avx512, avx512::prelu_f32}};
const isa::KernelTable<Kernel<Prelu>> prelu_bf16{{"prelu_bf16_scalar", Level::scalar, scalar::prelu_bf16},
                                                 {"prelu_bf16_avx2", Level::avx2, avx2::prelu_bf16},
                                                 {"prelu_bf16_avx512", Level::avx512, avx512::prelu_bf16}};
const isa::KernelTable<Kernel<Prelu>> prelu_f64{{"prelu_f64_scalar", Level::scalar, scalar::prelu_f64}};

const isa::KernelTable<Kernel<PreluBackward>> prelu_backward_f32{
    {"prelu_backward_f32_scalar", Level::scalar, scalar::prelu_backward_f32},
    {"prelu_backward_f32_avx2", Level::avx2, avx2::prelu_backward_f32},
    {"prelu_backward_f32_avx512", Level::avx512, avx512::prelu_backward_f32}};
const isa::KernelTable<Kernel<PreluBackward>> prelu_backward_bf16{
    {"prelu_backward_bf16_scalar", Level::scalar, scalar::prelu_backward_bf16},
    {"prelu_backward_bf16_avx2", Level::avx2, avx2::prelu_backward_bf16},
    {"prelu_backward_bf16_avx512", Level::avx512, avx512::prelu_backward_bf16}};
const isa::KernelTable<Kernel<PreluBackward>> prelu_backward_f64{
    {"prelu_backward_f64_scalar", Level::scalar, scalar::prelu_backward_f64}};

}  // namespace volnet::activate

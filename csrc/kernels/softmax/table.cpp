#include "kernels/softmax/softmax.h"

namespace volnet::softmax {

using isa::Level;

const isa::KernelTable<Kernel<Forward>> forward_f32{
    {"softmax_f32_scalar", Level::scalar, scalar::forward_f32},
    {"softmax_f32_avx2", Level::avx2, avx2::forward_f32},
    {"softmax_f32_avx512", Level::avx512, avx512::forward_f32}};
const isa::KernelTable<Kernel<Forward>> forward_bf16{
    {"softmax_bf16_scalar", Level::scalar, scalar::forward_bf16},
    {"softmax_bf16_avx2", Level::avx2, avx2::forward_bf16},
    {"softmax_bf16_avx512", Level::avx512, avx512::forward_bf16}};
const isa::KernelTable<Kernel<Forward>> forward_f64{
    {"softmax_f64_scalar", Level::scalar, scalar::forward_f64}};

const isa::KernelTable<Kernel<Forward>> forward_rows_f32{
    {"softmax_f32_rows_scalar", Level::scalar, scalar::forward_rows_f32},
    {"softmax_f32_rows_avx2", Level::avx2, avx2::forward_rows_f32},
    {"softmax_f32_rows_avx512", Level::avx512, avx512::forward_rows_f32}};
const isa::KernelTable<Kernel<Forward>> forward_rows_bf16{
    {"softmax_bf16_rows_scalar", Level::scalar, scalar::forward_rows_bf16},
    {"softmax_bf16_rows_avx2", Level::avx2, avx2::forward_rows_bf16},
    {"softmax_bf16_rows_avx512", Level::avx512, avx512::forward_rows_bf16}};
const isa::KernelTable<Kernel<Forward>> forward_rows_f64{
    {"softmax_f64_rows_scalar", Level::scalar, scalar::forward_rows_f64}};

const isa::KernelTable<Kernel<Backward>> backward_f32{
    {"softmax_backward_f32_scalar", Level::scalar, scalar::backward_f32},
    {"softmax_backward_f32_avx2", Level::avx2, avx2::backward_f32},
    {"softmax_backward_f32_avx512", Level::avx512, avx512::backward_f32}};
const isa::KernelTable<Kernel<Backward>> backward_bf16{
    {"softmax_backward_bf16_scalar", Level::scalar, scalar::backward_bf16},
    {"softmax_backward_bf16_avx2", Level::avx2, avx2::backward_bf16},
    {"softmax_backward_bf16_avx512", Level::avx512, avx512::backward_bf16}};
const isa::KernelTable<Kernel<Backward>> backward_f64{
    {"softmax_backward_f64_scalar", Level::scalar, scalar::backward_f64}};

const isa::KernelTable<Kernel<Backward>> backward_rows_f32{
    {"softmax_backward_f32_rows_scalar", Level::scalar, scalar::backward_rows_f32},
    {"softmax_backward_f32_rows_avx2", Level::avx2, avx2::backward_rows_f32},
    {"softmax_backward_f32_rows_avx512", Level::avx512, avx512::backward_rows_f32}};
const isa::KernelTable<Kernel<Backward>> backward_rows_bf16{
    {"softmax_backward_bf16_rows_scalar", Level::scalar, scalar::backward_rows_bf16},
    {"softmax_backward_bf16_rows_avx2", Level::avx2, avx2::backward_rows_bf16},
    {"softmax_backward_bf16_rows_avx512", Level::avx512, avx512::backward_rows_bf16}};
const isa::KernelTable<Kernel<Backward>> backward_rows_f64{
    {"softmax_backward_f64_rows_scalar", Level::scalar, scalar::backward_rows_f64}};

}  // namespace volnet::softmax

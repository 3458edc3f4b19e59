#include "kernels/separable/separable.h"

namespace volnet::separable {

using isa::Level;

const isa::KernelTable<Kernel<float>> plain_f32{
    {"separable_f32_plain_scalar", Level::scalar, {scalar::plain_f32, 1}},
    {"separable_f32_plain_avx2", Level::avx2, {avx2::plain_f32, 8}},
    {"separable_f32_plain_avx512", Level::avx512, {avx512::plain_f32, 16}}};
const isa::KernelTable<Kernel<float>> plain_bf16{
    {"separable_bf16_plain_scalar", Level::scalar, {scalar::plain_bf16, 1}},
    {"separable_bf16_plain_avx2", Level::avx2, {avx2::plain_bf16, 8}},
    {"separable_bf16_plain_avx512", Level::avx512, {avx512::plain_bf16, 16}}};
const isa::KernelTable<Kernel<float>> plain_i16{
    {"separable_i16_plain_scalar", Level::scalar, {scalar::plain_i16, 1}},
    {"separable_i16_plain_avx2", Level::avx2, {avx2::plain_i16, 8}},
    {"separable_i16_plain_avx512", Level::avx512, {avx512::plain_i16, 16}}};
const isa::KernelTable<Kernel<float>> plain_i16_f32{
    {"separable_i16_f32_plain_scalar", Level::scalar, {scalar::plain_i16_f32, 1}},
    {"separable_i16_f32_plain_avx2", Level::avx2, {avx2::plain_i16_f32, 8}},
    {"separable_i16_f32_plain_avx512", Level::avx512, {avx512::plain_i16_f32, 16}}};
const isa::KernelTable<Kernel<float>> plain_f32_i16{
    {"separable_f32_i16_plain_scalar", Level::scalar, {scalar::plain_f32_i16, 1}},
    {"separable_f32_i16_plain_avx2", Level::avx2, {avx2::plain_f32_i16, 8}},
    {"separable_f32_i16_plain_avx512", Level::avx512, {avx512::plain_f32_i16, 16}}};
const isa::KernelTable<Kernel<float>> channels_last_f32{
    {"separable_f32_channels_last_scalar", Level::scalar, {scalar::channels_last_f32, 1}},
    {"separable_f32_channels_last_avx2", Level::avx2, {avx2::channels_last_f32, 8}},
    {"separable_f32_channels_last_avx512", Level::avx512, {avx512::channels_last_f32, 16}}};
const isa::KernelTable<Kernel<float>> channels_last_bf16{
    {"separable_bf16_channels_last_scalar", Level::scalar, {scalar::channels_last_bf16, 1}},
    {"separable_bf16_channels_last_avx2", Level::avx2, {avx2::channels_last_bf16, 8}},
    {"separable_bf16_channels_last_avx512", Level::avx512, {avx512::channels_last_bf16, 16}}};
const isa::KernelTable<Kernel<double>> plain_f64{
    {"separable_f64_plain_scalar", Level::scalar, {scalar::plain_f64, 1}}};
const isa::KernelTable<Kernel<double>> channels_last_f64{
    {"separable_f64_channels_last_scalar", Level::scalar, {scalar::channels_last_f64, 1}}};

}  // namespace volnet::separable

#include "kernels/conv3d/amx.h"
#include "kernels/conv3d/amx_gradient.h"
#include "kernels/conv3d/amx_winograd.h"
#include "kernels/conv3d/conv3d.h"
#include "kernels/conv3d/winograd.h"
#include "kernels/conv3d/winograd_gradient.h"

namespace volnet::conv3d {

using isa::KernelTable;
using isa::Level;

const KernelTable<DirectKernel> direct_f32{
    {"conv3d_f32_direct_scalar", Level::scalar, {scalar::direct_f32, 1, 4}},
    {"conv3d_f32_direct_avx2", Level::avx2, {avx2::direct_f32, 8, 6}},
    {"conv3d_f32_direct_avx512", Level::avx512, {avx512::direct_f32, 16, 14}},
};
const KernelTable<DirectKernel> direct_bf16{
    {"conv3d_bf16_direct_scalar", Level::scalar, {scalar::direct_bf16, 1, 4}},
    {"conv3d_bf16_direct_avx2", Level::avx2, {avx2::direct_bf16, 8, 6}},
    {"conv3d_bf16_direct_avx512", Level::avx512, {avx512::direct_bf16, 16, 14}},
};
const KernelTable<DirectKernel> direct_f64{
    {"conv3d_f64_direct_scalar", Level::scalar, {scalar::direct_f64, 1, 4}},
};

const KernelTable<ApplyInputs> apply_inputs_f32{
    {"conv3d_f32_apply_inputs_scalar", Level::scalar, scalar::apply_inputs_f32},
    {"conv3d_f32_apply_inputs_avx2", Level::avx2, avx2::apply_inputs_f32},
    {"conv3d_f32_apply_inputs_avx512", Level::avx512, avx512::apply_inputs_f32},
};
const KernelTable<ApplyInputs> apply_inputs_bf16{
    {"conv3d_bf16_apply_inputs_scalar", Level::scalar, scalar::apply_inputs_bf16},
    {"conv3d_bf16_apply_inputs_avx2", Level::avx2, avx2::apply_inputs_bf16},
    {"conv3d_bf16_apply_inputs_avx512", Level::avx512, avx512::apply_inputs_bf16},
};
const KernelTable<ApplyInputs> apply_inputs_f64{
    {"conv3d_f64_apply_inputs_scalar", Level::scalar, scalar::apply_inputs_f64},
};

const KernelTable<DirectKernel> depthwise_f32{
    {"conv3d_f32_depthwise_scalar", Level::scalar, {scalar::depthwise_f32, 1, 1}},
    {"conv3d_f32_depthwise_avx2", Level::avx2, {avx2::depthwise_f32, 8, 1}},
    {"conv3d_f32_depthwise_avx512", Level::avx512, {avx512::depthwise_f32, 16, 1}},
};
const KernelTable<DirectKernel> depthwise_bf16{
    {"conv3d_bf16_depthwise_scalar", Level::scalar, {scalar::depthwise_bf16, 1, 1}},
    {"conv3d_bf16_depthwise_avx2", Level::avx2, {avx2::depthwise_bf16, 8, 1}},
    {"conv3d_bf16_depthwise_avx512", Level::avx512, {avx512::depthwise_bf16, 16, 1}},
};
const KernelTable<DirectKernel> depthwise_f64{
    {"conv3d_f64_depthwise_scalar", Level::scalar, {scalar::depthwise_f64, 1, 1}},
};

const KernelTable<WinogradKernel> winograd_f32{
    {"conv3d_f32_winograd_scalar",
     Level::scalar,
     {scalar::winograd_weights, scalar::winograd_input_f32, scalar::winograd_multiply,
      scalar::winograd_output_plane, scalar::winograd_output_f32, 1, 4}},
    {"conv3d_f32_winograd_avx2",
     Level::avx2,
     {avx2::winograd_weights, avx2::winograd_input_f32, avx2::winograd_multiply, avx2::winograd_output_plane,
      avx2::winograd_output_f32, 8, 6}},
    {"conv3d_f32_winograd_avx512",
     Level::avx512,
     {avx512::winograd_weights, avx512::winograd_input_f32, avx512::winograd_multiply,
      avx512::winograd_output_plane, avx512::winograd_output_f32, 16, 14}},
};
const KernelTable<WinogradKernel> winograd_bf16{
    {"conv3d_bf16_winograd_scalar",
     Level::scalar,
     {scalar::winograd_weights, scalar::winograd_input_bf16, scalar::winograd_multiply,
      scalar::winograd_output_plane, scalar::winograd_output_bf16, 1, 4}},
    {"conv3d_bf16_winograd_avx2",
     Level::avx2,
     {avx2::winograd_weights, avx2::winograd_input_bf16, avx2::winograd_multiply, avx2::winograd_output_plane,
      avx2::winograd_output_bf16, 8, 6}},
    {"conv3d_bf16_winograd_avx512",
     Level::avx512,
     {avx512::winograd_weights, avx512::winograd_input_bf16, avx512::winograd_multiply,
      avx512::winograd_output_plane, avx512::winograd_output_bf16, 16, 14}},
};

const KernelTable<AmxKernel> amx_f32{{"conv3d_f32_amx", Level::amx, {amx::convolution_f32, amx::pack_f32}}};
const KernelTable<AmxKernel> amx_bf16{
    {"conv3d_bf16_amx", Level::amx, {amx::convolution_bf16, amx::pack_bf16}}};
const KernelTable<AmxWinogradKernel> amx_winograd_f32{
    {"conv3d_f32_amx_winograd", Level::amx, {amx::winograd_f32, amx::pack_winograd_f32}}};
const KernelTable<AmxGradientKernel> amx_gradient_f32{
    {"conv3d_f32_weight_gradient_amx", Level::amx, {amx::weight_gradient_f32}}};
const KernelTable<AmxGradientKernel> amx_gradient_bf16{
    {"conv3d_bf16_weight_gradient_amx", Level::amx, {amx::weight_gradient_bf16}}};
const KernelTable<WinogradGradientKernel> winograd_gradient_f32{
    {"conv3d_f32_winograd_gradient_scalar",
     Level::scalar,
     {scalar::winograd_gradient_f32, scalar::winograd_gradient_weights, 1}},
    {"conv3d_f32_winograd_gradient_avx2",
     Level::avx2,
     {avx2::winograd_gradient_f32, avx2::winograd_gradient_weights, 8}},
    {"conv3d_f32_winograd_gradient_avx512",
     Level::avx512,
     {avx512::winograd_gradient_f32, avx512::winograd_gradient_weights, 16}},
};
const KernelTable<WinogradGradientKernel> winograd_gradient_bf16{
    {"conv3d_bf16_winograd_gradient_scalar",
     Level::scalar,
     {scalar::winograd_gradient_bf16, scalar::winograd_gradient_weights, 1}},
    {"conv3d_bf16_winograd_gradient_avx2",
     Level::avx2,
     {avx2::winograd_gradient_bf16, avx2::winograd_gradient_weights, 8}},
    {"conv3d_bf16_winograd_gradient_avx512",
     Level::avx512,
     {avx512::winograd_gradient_bf16, avx512::winograd_gradient_weights, 16}},
};

const KernelTable<GradientKernel> weight_gradient_f32{
    {"conv3d_f32_weight_gradient_scalar", Level::scalar, {scalar::weight_gradient_f32, 1}},
    {"conv3d_f32_weight_gradient_avx2", Level::avx2, {avx2::weight_gradient_f32, 8}},
    {"conv3d_f32_weight_gradient_avx512", Level::avx512, {avx512::weight_gradient_f32, 16}},
};
const KernelTable<GradientKernel> weight_gradient_f64{
    {"conv3d_f64_weight_gradient_scalar", Level::scalar, {scalar::weight_gradient_f64, 1}},
};

}  // namespace volnet::conv3d

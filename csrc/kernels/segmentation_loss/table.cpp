#include "kernels/segmentation_loss/segmentation_loss.h"

namespace volnet::segmentation_loss {

using isa::Level;

const isa::KernelTable<Kernel<Sums>> sums_f32{
    {"segmentation_loss_sums_f32_scalar", Level::scalar, scalar::sums_f32},
    {"segmentation_loss_sums_f32_avx2", Level::avx2, avx2::sums_f32},
    {"segmentation_loss_sums_f32_avx512", Level::avx512, avx512::sums_f32}};
const isa::KernelTable<Kernel<Sums>> sums_bf16{
    {"segmentation_loss_sums_bf16_scalar", Level::scalar, scalar::sums_bf16},
    {"segmentation_loss_sums_bf16_avx2", Level::avx2, avx2::sums_bf16},
    {"segmentation_loss_sums_bf16_avx512", Level::avx512, avx512::sums_bf16}};
const isa::KernelTable<Kernel<Sums>> sums_f64{
    {"segmentation_loss_sums_f64_scalar", Level::scalar, scalar::sums_f64}};

const isa::KernelTable<Kernel<Voxels>> voxels_f32{
    {"segmentation_loss_voxels_f32_scalar", Level::scalar, scalar::voxels_f32},
    {"segmentation_loss_voxels_f32_avx2", Level::avx2, avx2::voxels_f32},
    {"segmentation_loss_voxels_f32_avx512", Level::avx512, avx512::voxels_f32}};
const isa::KernelTable<Kernel<Voxels>> voxels_bf16{
    {"segmentation_loss_voxels_bf16_scalar", Level::scalar, scalar::voxels_bf16},
    {"segmentation_loss_voxels_bf16_avx2", Level::avx2, avx2::voxels_bf16},
    {"segmentation_loss_voxels_bf16_avx512", Level::avx512, avx512::voxels_bf16}};
const isa::KernelTable<Kernel<Voxels>> voxels_f64{
    {"segmentation_loss_voxels_f64_scalar", Level::scalar, scalar::voxels_f64}};

const isa::KernelTable<Kernel<Backward>> backward_f32{
    {"segmentation_loss_backward_f32_scalar", Level::scalar, scalar::backward_f32},
    {"segmentation_loss_backward_f32_avx2", Level::avx2, avx2::backward_f32},
    {"segmentation_loss_backward_f32_avx512", Level::avx512, avx512::backward_f32}};
const isa::KernelTable<Kernel<Backward>> backward_bf16{
    {"segmentation_loss_backward_bf16_scalar", Level::scalar, scalar::backward_bf16},
    {"segmentation_loss_backward_bf16_avx2", Level::avx2, avx2::backward_bf16},
    {"segmentation_loss_backward_bf16_avx512", Level::avx512, avx512::backward_bf16}};
const isa::KernelTable<Kernel<Backward>> backward_f64{
    {"segmentation_loss_backward_f64_scalar", Level::scalar, scalar::backward_f64}};

}  // namespace volnet::segmentation_loss

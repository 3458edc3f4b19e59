#include "kernels/nms3d/nms3d.h"

namespace volnet::nms3d {

using isa::Level;

const isa::KernelTable<void (*)(const Params<float>&)> suppress_f32{
    {"nms3d_f32_scalar", Level::scalar, scalar::suppress_f32},
    {"nms3d_f32_avx2", Level::avx2, avx2::suppress_f32},
    {"nms3d_f32_avx512", Level::avx512, avx512::suppress_f32}};

const isa::KernelTable<void (*)(const Params<double>&)> suppress_f64{
    {"nms3d_f64_scalar", Level::scalar, scalar::suppress_f64}};

}  // namespace volnet::nms3d

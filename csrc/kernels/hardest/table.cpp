#include "kernels/hardest/hardest.h"

namespace volnet::hardest {

using isa::Level;

const isa::KernelTable<Kernel<Histogram<float>>> histogram_f32{
    {"hardest_histogram_f32_scalar", Level::scalar, scalar::histogram_f32},
    {"hardest_histogram_f32_avx2", Level::avx2, avx2::histogram_f32},
    {"hardest_histogram_f32_avx512", Level::avx512, avx512::histogram_f32}};

const isa::KernelTable<Kernel<Sides<float>>> sides_f32{
    {"hardest_sides_f32_scalar", Level::scalar, scalar::sides_f32},
    {"hardest_sides_f32_avx2", Level::avx2, avx2::sides_f32},
    {"hardest_sides_f32_avx512", Level::avx512, avx512::sides_f32}};

const isa::KernelTable<Kernel<Choice<float>>> choose_f32{
    {"hardest_choose_f32_scalar", Level::scalar, scalar::choose_f32},
    {"hardest_choose_f32_avx2", Level::avx2, avx2::choose_f32},
    {"hardest_choose_f32_avx512", Level::avx512, avx512::choose_f32}};

const isa::KernelTable<Kernel<Histogram<double>>> histogram_f64{
    {"hardest_histogram_f64_scalar", Level::scalar, scalar::histogram_f64}};

const isa::KernelTable<Kernel<Sides<double>>> sides_f64{
    {"hardest_sides_f64_scalar", Level::scalar, scalar::sides_f64}};

const isa::KernelTable<Kernel<Choice<double>>> choose_f64{
    {"hardest_choose_f64_scalar", Level::scalar, scalar::choose_f64}};

}  // namespace volnet::hardest

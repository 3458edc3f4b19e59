#include "kernels/argmax/argmax.h"

namespace volnet::argmax {

using isa::Level;

const isa::KernelTable<Kernel> find_f32{{"argmax_f32_scalar", Level::scalar, scalar::find_f32},
                                        {"argmax_f32_avx2", Level::avx2, avx2::find_f32},
                                        {"argmax_f32_avx512", Level::avx512, avx512::find_f32}};
const isa::KernelTable<Kernel> find_bf16{{"argmax_bf16_scalar", Level::scalar, scalar::find_bf16},
                                         {"argmax_bf16_avx2", Level::avx2, avx2::find_bf16},
                                         {"argmax_bf16_avx512", Level::avx512, avx512::find_bf16}};
const isa::KernelTable<Kernel> find_f64{{"argmax_f64_scalar", Level::scalar, scalar::find_f64}};

const isa::KernelTable<Kernel> find_rows_f32{
    {"argmax_f32_rows_scalar", Level::scalar, scalar::find_rows_f32},
    {"argmax_f32_rows_avx2", Level::avx2, avx2::find_rows_f32},
    {"argmax_f32_rows_avx512", Level::avx512, avx512::find_rows_f32}};
const isa::KernelTable<Kernel> find_rows_bf16{
    {"argmax_bf16_rows_scalar", Level::scalar, scalar::find_rows_bf16},
    {"argmax_bf16_rows_avx2", Level::avx2, avx2::find_rows_bf16},
    {"argmax_bf16_rows_avx512", Level::avx512, avx512::find_rows_bf16}};
const isa::KernelTable<Kernel> find_rows_f64{
    {"argmax_f64_rows_scalar", Level::scalar, scalar::find_rows_f64}};

}  // namespace volnet::argmax

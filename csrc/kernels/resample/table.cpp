#include "kernels/resample/resample.h"

#include <limits>

namespace volnet::resample {

using isa::Level;

bool fits_vector(const Params& p) {
  const int64_t voxels = p.d * p.h * p.w;
  return p.w > 1 && voxels <= std::numeric_limits<int32_t>::max();
}

const isa::KernelTable<Kernel> i16_i16{{"resample_i16_i16_affine_scalar", Level::scalar, scalar::i16_i16},
                                       {"resample_i16_i16_affine_avx2", Level::avx2, avx2::i16_i16},
                                       {"resample_i16_i16_affine_avx512", Level::avx512, avx512::i16_i16}};
const isa::KernelTable<Kernel> i16_f32{{"resample_i16_f32_affine_scalar", Level::scalar, scalar::i16_f32},
                                       {"resample_i16_f32_affine_avx2", Level::avx2, avx2::i16_f32},
                                       {"resample_i16_f32_affine_avx512", Level::avx512, avx512::i16_f32}};
const isa::KernelTable<Kernel> f32_i16{{"resample_f32_i16_affine_scalar", Level::scalar, scalar::f32_i16},
                                       {"resample_f32_i16_affine_avx2", Level::avx2, avx2::f32_i16},
                                       {"resample_f32_i16_affine_avx512", Level::avx512, avx512::f32_i16}};
const isa::KernelTable<Kernel> f32_f32{{"resample_f32_f32_affine_scalar", Level::scalar, scalar::f32_f32},
                                       {"resample_f32_f32_affine_avx2", Level::avx2, avx2::f32_f32},
                                       {"resample_f32_f32_affine_avx512", Level::avx512, avx512::f32_f32}};

}  // namespace volnet::resample

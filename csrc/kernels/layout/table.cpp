#include "kernels/layout/layout.h"

namespace volnet::layout {

using isa::Level;

const isa::KernelTable<Function> kernels_b2{{"layout_b2_scalar", Level::scalar, scalar::transpose_b2},
                                            {"layout_b2_avx2", Level::avx2, avx2::transpose_b2},
                                            {"layout_b2_avx512", Level::avx512, avx512::transpose_b2}};
const isa::KernelTable<Function> kernels_b4{{"layout_b4_scalar", Level::scalar, scalar::transpose_b4},
                                            {"layout_b4_avx2", Level::avx2, avx2::transpose_b4},
                                            {"layout_b4_avx512", Level::avx512, avx512::transpose_b4}};
const isa::KernelTable<Function> kernels_b8{{"layout_b8_scalar", Level::scalar, scalar::transpose_b8},
                                            {"layout_b8_avx2", Level::avx2, avx2::transpose_b8},
                                            {"layout_b8_avx512", Level::avx512, avx512::transpose_b8}};

}  // namespace volnet::layout

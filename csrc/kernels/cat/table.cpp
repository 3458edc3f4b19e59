#include "kernels/cat/cat.h"

namespace volnet::cat {

using isa::Level;

const isa::KernelTable<Kernel> join_kernels{{"cat_join_scalar", Level::scalar, scalar::join},
                                            {"cat_join_avx2", Level::avx2, avx2::join},
                                            {"cat_join_avx512", Level::avx512, avx512::join}};
const isa::KernelTable<Kernel> split_kernels{{"cat_split_scalar", Level::scalar, scalar::split},
                                             {"cat_split_avx2", Level::avx2, avx2::split},
                                             {"cat_split_avx512", Level::avx512, avx512::split}};
const isa::KernelTable<CopyKernel> copy_kernels{{"cat_copy_scalar", Level::scalar, scalar::copy},
                                                {"cat_copy_avx2", Level::avx2, avx2::copy},
                                                {"cat_copy_avx512", Level::avx512, avx512::copy}};

}  // namespace volnet::cat

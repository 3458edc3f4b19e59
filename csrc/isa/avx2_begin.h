// Opens the AVX2 target region (see scalar_begin.h). <immintrin.h> must have been included before.
#define VOLNET_ISA avx2
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2")

// Opens the AVX-512 target region (see scalar_begin.h). <immintrin.h> must have been included before.
#define VOLNET_ISA avx512
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")

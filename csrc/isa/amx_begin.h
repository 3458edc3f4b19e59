// Opens the AMX target region (see scalar_begin.h). <immintrin.h> must have been included before.
#define VOLNET_ISA amx
#pragma GCC push_options
#pragma GCC target( \
    "avx2,fma,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16,prefer-vector-width=512")

#pragma GCC pop_options
#undef VOLNET_ISA

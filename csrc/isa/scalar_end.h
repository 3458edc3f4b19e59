#undef VOLNET_ISA

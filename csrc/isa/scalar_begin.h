// Opens the scalar target region: the machine every x86-64 build may assume.
// Include after every standard header; what is defined inside belongs to this level alone.
#define VOLNET_ISA scalar

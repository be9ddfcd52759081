#define FILIGREE_ISA avx2
#include "kernels/cpu/simd_table.h"

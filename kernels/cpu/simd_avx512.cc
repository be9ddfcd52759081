#define FILIGREE_ISA avx512
#include "kernels/cpu/simd_table.h"

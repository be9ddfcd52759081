#define FILIGREE_ISA baseline
#include "kernels/cpu/simd_table.h"

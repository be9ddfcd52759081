#define FILIGREE_ISA avx512
#include "kernels/cpu/draw_loops.h"

#define FILIGREE_ISA avx2
#include "kernels/cpu/draw_loops.h"

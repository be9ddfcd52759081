#define FILIGREE_ISA baseline
#include "kernels/cpu/draw_loops.h"

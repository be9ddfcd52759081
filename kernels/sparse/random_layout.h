// Layouts drawn at random: pure functions of (shape, density, seed, name), the same on every rank.
#pragma once

#include <cstdint>
#include <string_view>

#include "kernels/sparse/layout.h"

namespace filigree {

// round(density * out * in) cells drawn uniformly without replacement over the whole weight (SPDF,
// methods B.1: one draw a weight, not one a row).
SparseLayout RandomUnstructured(int64_t out, int64_t in, double density, uint64_t seed,
                                std::string_view name);

// The same with the number of cells given.
SparseLayout RandomUnstructuredCells(int64_t out, int64_t in, int64_t count, uint64_t seed,
                                     std::string_view name);

// round(density * blocks) blocks over the padded grid, balanced: the number of blocks in two block
// rows, and in two block columns, differs by at most one. Positions are random under that
// constraint.
SparseLayout RandomBalancedBlocks(int64_t out, int64_t in, int block_out, int block_in,
                                  double density, uint64_t seed, std::string_view name);

// n of every m consecutive cells of a row, each choice as likely as any other (SLoPe, arXiv
// 2405.16325: a mask drawn at the start and kept). `transposable`: each aligned m x m block has n
// in every row and in every column (arXiv 2102.08124), so that the transposed weight is n:m too;
// out is then a multiple of m. 1 <= n < m <= 64, m divides in.
SparseLayout RandomNM(int64_t out, int64_t in, int n, int m, bool transposable, uint64_t seed,
                      std::string_view name);

// round(density * blocks) blocks drawn uniformly without replacement, rows and columns as they
// fall.
SparseLayout RandomUniformBlocks(int64_t out, int64_t in, int block_out, int block_in,
                                 double density, uint64_t seed, std::string_view name);

}  // namespace filigree

// Second stage of deterministic column sums: partial rows, each the sum of some rows, become one.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "kernels/base/tensor_view.h"

namespace filigree {

// A gradient that column sums go to.
struct ColumnTotal {
  TensorView out;  // [n] F32 or BF16 (added in F32, rounded once)
  bool accumulate = true;
};
constexpr int kMaxColumnTotals = 3;

// For vectors of n columns that lie side by side in each of the `count` partial rows, totals[v].out
// (+)= the sum of vector v over the rows, in their order. All outputs have n elements of one dtype.
void SumColumnPartials(const float* partials, int64_t count, std::span<const ColumnTotal> totals,
                       cudaStream_t stream);

}  // namespace filigree

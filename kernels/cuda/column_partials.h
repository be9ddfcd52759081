// Second stage of deterministic column sums: partial rows, each the sum of some rows, become one.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/base/tensor_view.h"

namespace filigree {

// out[c] += sum over i of partials[i * stride + c], in the order of i; `out` is F32 or BF16 (added
// in F32, rounded once).
void AddColumnPartials(const float* partials, int64_t count, int64_t stride, TensorView out,
                       cudaStream_t stream);

}  // namespace filigree

// The sum of what each rank sent: the second half of a reduce-scatter whose first half copied.
#pragma once

#include "kernels/base/device.h"
#include "kernels/base/tensor_view.h"

namespace filigree {

// out [n] = sum over i of slices[i * n + .], in order of i, in F32 and rounded once. `slices`
// [count * n] and `out` are contiguous device memory of one dtype, F32 or BF16, and apart.
void SumSlices(ConstTensorView slices, TensorView out, Stream& stream);

}  // namespace filigree

// What a product leaves to be done where its kernel could not: bias and ProductEpilogue, in passes
// over the stored result.
#pragma once

#include "kernels/cuda/cuda_backend.h"

namespace filigree {

// Bias and epilogue have the shapes of a product into `out`.
void CheckFinish(ConstTensorView out, ConstTensorView bias, const ProductEpilogue& epilogue);

// With r = result + bias + residual: pre_activation = r (or codes of gelu'(r)) and out = gelu(r); or
// out = r * gelu'(gelu_input); or out and dup are SwiGLU's gradients for dy = r; or out = r, and of
// it SwiGLU's output; then the column sums of out. `result`, of the shape of `out`, may be
// epilogue.ResultIn(out) or memory of its own, which may be F32 beside a BF16 `out`. Launches
// nothing where nothing is to be done.
void FinishProduct(CudaBackend& backend, ConstTensorView result, TensorView out,
                   ConstTensorView bias, const ProductEpilogue& epilogue, Stream& stream);
// The last step alone.
void SumColumns(CudaBackend& backend, ConstTensorView out, const ProductEpilogue& epilogue,
                Stream& stream);

}  // namespace filigree

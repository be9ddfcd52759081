// Causal attention in plain CUDA for any shape with heads of up to 256: where cuDNN is absent or
// declines. Deterministic.
//
// The method is FlashAttention-2's (Dao 2023): scores live in one tile at a time, the softmax runs
// along, and the backward pass recomputes probabilities from the log-sum-exp. Everything is F32
// between the BF16 inputs and outputs, on the CUDA cores.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "kernels/backend.h"
#include "kernels/cuda/attention_shape.h"

namespace filigree {

constexpr int64_t kAttentionFallbackHeadSize = 256;

void LaunchAttentionFallback(const AttentionArgs& args, const AttentionShape& shape,
                             cudaStream_t stream);

// Bytes of `delta` below.
size_t AttentionFallbackWorkspaceBytes(const AttentionShape& shape);
// `delta` [B, H, S] F32 is scratch: the row sums of dout * out. dq, and dk with dv, are two
// kernels, so that each output has one writer; dk and dv sum over their query heads in ascending
// order.
void LaunchAttentionBackwardFallback(const AttentionBackwardArgs& args, const AttentionShape& shape,
                                     float* delta, cudaStream_t stream);

}  // namespace filigree

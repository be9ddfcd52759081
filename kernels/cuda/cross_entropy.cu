// CrossEntropyKernel, WideCrossEntropyKernel: losses, and the gradient over the logits.
//
// CrossEntropyKernel keeps a row of bf16 logits in shared memory. Grid: one block of 512 threads a
// row (fewer where rows are short); two blocks share a multiprocessor up to 56,000 columns, so that
// one's loads hide the other's exponentials. Bytes: 2 an element read, 2 written in training.
// WideCrossEntropyKernel takes rows that do not fit, and any width and alignment. Grid: as above.
// One pass finds maximum and sum together, a second writes the gradient: 4 read, 2 written.
#include <cuda_pipeline.h>

#include <algorithm>

#include "kernels/base/math.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/device_rows.h"
#include "kernels/cuda/logit_rows.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/vectors.cuh"

namespace filigree {
namespace {

struct LossParams {
  Rows<bf16> logits;
  const int32_t* targets;
  float* losses;
  int cols, vocab_size;
  float loss_scale;
  const float* loss_scale_on_device;  // read instead, where there is one and it is training
};

__device__ __forceinline__ float LossScaleOf(const LossParams& p) {
  return p.loss_scale_on_device != nullptr ? __ldg(p.loss_scale_on_device) : p.loss_scale;
}

template <int kVec>
__device__ __forceinline__ float ExpSumOf(const float (&values)[kVec], float max) {
  float sum = 0;
#pragma unroll
  for (int k = 0; k < kVec; ++k) sum += Exp(values[k] - max);
  return sum;
}

// loss_scale * (softmax - onehot) of a pack; `factor` is loss_scale over the sum of exponentials.
template <int kVec>
__device__ __forceinline__ Bf16Pack<kVec> GradientOf(float (&values)[kVec], int col, int target,
                                                     float max, float factor, float loss_scale) {
#pragma unroll
  for (int k = 0; k < kVec; ++k) values[k] = Exp(values[k] - max) * factor;
  if (target >= col && target < col + kVec) {
#pragma unroll
    for (int k = 0; k < kVec; ++k) {
      if (col + k == target) values[k] -= loss_scale;
    }
  }
  return Rounded(values);
}

// Whether the row is masked; its loss, and in training its gradient, are then written as zero.
template <int kVec>
__device__ __forceinline__ bool IsMasked(const LossParams& p, int64_t row, int target) {
  if (target >= p.vocab_size || target < -1) __trap();
  if (target >= 0) return false;
  if (threadIdx.x == 0) p.losses[row] = 0;
  if (p.loss_scale == 0) return true;
  for (int col = kVec * threadIdx.x; col < p.cols; col += kVec * blockDim.x) {
    Store<kVec>(p.logits.row(row) + col, Bf16Pack<kVec>{});
  }
  return true;
}

__global__ void __launch_bounds__(kMaxRowThreads, 2) CrossEntropyKernel(LossParams p) {
  extern __shared__ uint4 packs[];  // [cols / 8]
  __shared__ float shared[kMaxWarps];
  const int64_t row = blockIdx.x;
  const int target = p.targets[row];
  if (IsMasked<8>(p, row, target)) return;
  bf16* logits = p.logits.row(row);
  const int count = p.cols / 8;
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    __pipeline_memcpy_async(packs + i, logits + 8 * i, sizeof(uint4));
  }
  __pipeline_commit();
  __pipeline_wait_prior(0);
  // Until the next barrier a thread reads only what it copied itself.
  float max = kLowest;
#pragma unroll 4
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    float values[8];
    LogitsOf(Bf16Pack<8>{packs[i]}, 8 * i, p.vocab_size, values);
    max = MaxOf(values, max);
  }
  max = BlockMax(max, shared);
  float sum = 0;
#pragma unroll 4
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    float values[8];
    LogitsOf(Bf16Pack<8>{packs[i]}, 8 * i, p.vocab_size, values);
    sum += ExpSumOf(values, max);
  }
  sum = BlockSum(sum, shared);
  if (threadIdx.x == 0) {
    const float logit = __bfloat162float(reinterpret_cast<const bf16*>(packs)[target]);
    p.losses[row] = logf(sum) + (max - logit);
  }
  if (p.loss_scale == 0) return;
  const float loss_scale = LossScaleOf(p), factor = loss_scale / sum;
#pragma unroll 4
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    float values[8];
    LogitsOf(Bf16Pack<8>{packs[i]}, 8 * i, p.vocab_size, values);
    Store<8>(logits + 8 * i, GradientOf(values, 8 * i, target, max, factor, loss_scale));
  }
}

template <int kVec>
__global__ void __launch_bounds__(kMaxRowThreads, 2) WideCrossEntropyKernel(LossParams p) {
  __shared__ float shared[kMaxWarps];
  const int64_t row = blockIdx.x;
  const int target = p.targets[row];
  if (IsMasked<kVec>(p, row, target)) return;
  bf16* logits = p.logits.row(row);
  const float logit = __bfloat162float(logits[target]);
  const int step = kVec * blockDim.x;
  float max = kLowest, sum = 0;
#pragma unroll 4
  for (int col = kVec * threadIdx.x; col < p.cols; col += step) {
    float values[kVec];
    LogitsOf(Load<kVec>(logits + col), col, p.vocab_size, values);
    const float old_max = max;
    max = MaxOf(values, max);
    sum = sum * Exp(old_max - max) + ExpSumOf(values, max);
  }
  const float row_max = BlockMax(max, shared);
  sum = BlockSum(sum * Exp(max - row_max), shared);
  if (threadIdx.x == 0) p.losses[row] = logf(sum) + (row_max - logit);
  if (p.loss_scale == 0) return;
  const float loss_scale = LossScaleOf(p), factor = loss_scale / sum;
#pragma unroll 4
  for (int col = kVec * threadIdx.x; col < p.cols; col += step) {
    float values[kVec];
    LogitsOf(Load<kVec>(logits + col), col, p.vocab_size, values);
    Store<kVec>(logits + col, GradientOf(values, col, target, row_max, factor, loss_scale));
  }
}

// Dynamic shared memory that a block may ask for beside the few bytes it has anyway.
int64_t SharedLimit(int ordinal) {
  int limit = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, ordinal));
  return limit - 1024;
}

void LaunchCrossEntropy(const LossParams& p, int64_t rows, int threads, cudaStream_t stream) {
  const int shared_bytes = p.cols * static_cast<int>(sizeof(bf16));
  CUDA_CHECK(cudaFuncSetAttribute(CrossEntropyKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  shared_bytes));
  CUDA_CHECK(cudaFuncSetAttribute(CrossEntropyKernel,
                                  cudaFuncAttributePreferredSharedMemoryCarveout,
                                  cudaSharedmemCarveoutMaxShared));
  CrossEntropyKernel<<<rows, threads, shared_bytes, stream>>>(p);
}

const float* LossScaleOnDevice(const CrossEntropyArgs& args) {
  if (args.loss_scale_on_device.empty() || args.loss_scale == 0) return nullptr;
  return AsElements<float>(args.loss_scale_on_device, 1, "loss_scale_on_device");
}

}  // namespace

void CudaBackend::CrossEntropy(const CrossEntropyArgs& args, Stream& stream) {
  const int64_t rows = args.logits.rows(), cols = args.logits.cols();
  CHECK(args.vocab_size >= 1 && args.vocab_size <= cols)
      << "vocabulary of " << args.vocab_size << " in " << cols << " columns";
  const LossParams p = {.logits = AsRows<bf16>(args.logits, rows, cols, "logits"),
                        .targets = AsElements<int32_t>(args.targets, rows, "targets"),
                        .losses = AsElements<float>(args.losses, rows, "losses"),
                        .cols = static_cast<int>(cols),
                        .vocab_size = static_cast<int>(args.vocab_size),
                        .loss_scale = static_cast<float>(args.loss_scale),
                        .loss_scale_on_device = LossScaleOnDevice(args)};
  if (rows == 0) return;
  const cudaStream_t native = NativeStream(stream);
  const bool vectors = TakesVectors(args.logits);
  // Four packs a thread and more.
  const int threads = static_cast<int>(
      std::clamp<int64_t>(AlignUp(cols / 32, kWarpThreads), kWarpThreads, kMaxRowThreads));
  if (!vectors) {
    WideCrossEntropyKernel<1><<<rows, threads, 0, native>>>(p);
  } else if (cols * static_cast<int64_t>(sizeof(bf16)) > SharedLimit(device_.ordinal())) {
    WideCrossEntropyKernel<8><<<rows, threads, 0, native>>>(p);
  } else {
    LaunchCrossEntropy(p, rows, threads, native);
  }
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace filigree

// DistillationKernel: the losses of a student beside its teacher, and the gradient over its logits.
//
// Grid: one block of up to 512 threads a row. One pass over both rows finds maxima and sums
// together (each thread rescales its sums when its maximum grows), a second writes the gradient.
// Bytes: 4 an element read in each pass, the second time from L2 as far as the rows in flight fit
// it, 2 written.
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

struct DistillationParams {
  Rows<bf16> logits;
  Rows<const bf16> teacher;
  const int32_t* targets;
  float* losses;
  float* divergences;
  int cols, vocab_size;
  float temperature, inverse_temperature;
  float hard, soft;  // loss_scale (1 - alpha), loss_scale alpha temperature
  bool training;
};

// What one thread, then the block, knows of a row. Sums are of exponentials less the maximum.
struct RowSums {
  float max = kLowest, teacher_max = kLowest;
  float sum = 0, softened = 0;  // of the student's, at temperature 1 and T
  float teacher = 0;            // of the teacher's, at T
  float difference = 0;         // of the teacher's, each times (teacher's logit - student's)
};

// Multiplies the sums by what larger maxima make of their exponentials.
__device__ __forceinline__ void Rescale(RowSums& row, float max, float teacher_max, float inverse) {
  row.sum *= Exp(row.max - max);
  row.softened *= Exp((row.max - max) * inverse);
  const float factor = Exp((row.teacher_max - teacher_max) * inverse);
  row.teacher *= factor;
  row.difference *= factor;
  row.max = max;
  row.teacher_max = teacher_max;
}

template <int kVec>
__device__ __forceinline__ void Add(RowSums& row, const float (&z)[kVec], const float (&u)[kVec],
                                    int col, const DistillationParams& p) {
  Rescale(row, MaxOf(z, row.max), MaxOf(u, row.teacher_max), p.inverse_temperature);
#pragma unroll
  for (int k = 0; k < kVec; ++k) {
    if (col + k >= p.vocab_size) continue;  // -infinity less itself is no number
    row.sum += Exp(z[k] - row.max);
    row.softened += Exp((z[k] - row.max) * p.inverse_temperature);
    const float weight = Exp((u[k] - row.teacher_max) * p.inverse_temperature);
    row.teacher += weight;
    row.difference += weight * (u[k] - z[k]);
  }
}

__device__ __forceinline__ void ReduceOverBlock(RowSums& row, float inverse,
                                                float (&shared)[kMaxWarps]) {
  const float max = BlockMax(row.max, shared);
  const float teacher_max = BlockMax(row.teacher_max, shared);
  Rescale(row, max, teacher_max, inverse);
  row.sum = BlockSum(row.sum, shared);
  row.softened = BlockSum(row.softened, shared);
  row.teacher = BlockSum(row.teacher, shared);
  row.difference = BlockSum(row.difference, shared);
}

template <int kVec>
__device__ __forceinline__ void WriteGradient(const DistillationParams& p, const RowSums& row,
                                              bf16* logits, const bf16* teacher, int target) {
  const float own = p.hard / row.sum, softened = p.soft / row.softened;
  const float taught = p.soft / row.teacher;
  for (int col = kVec * threadIdx.x; col < p.cols; col += kVec * blockDim.x) {
    float z[kVec], u[kVec];
    LogitsOf(Load<kVec>(logits + col), col, p.vocab_size, z);
    if (col < p.vocab_size) LogitsOf(Load<kVec>(teacher + col), col, p.vocab_size, u);
#pragma unroll
    for (int k = 0; k < kVec; ++k) {
      if (col + k >= p.vocab_size) {
        z[k] = 0;
        continue;
      }
      z[k] = own * Exp(z[k] - row.max) + softened * Exp((z[k] - row.max) * p.inverse_temperature) -
             taught * Exp((u[k] - row.teacher_max) * p.inverse_temperature) -
             (col + k == target ? p.hard : 0.0f);
    }
    Store<kVec>(logits + col, Rounded(z));
  }
}

template <int kVec>
__global__ void __launch_bounds__(kMaxRowThreads, 2) DistillationKernel(DistillationParams p) {
  __shared__ float shared[kMaxWarps];
  const int64_t index = blockIdx.x;
  const int target = p.targets[index];
  if (target >= p.vocab_size || target < -1) __trap();
  bf16* logits = p.logits.row(index);
  const bf16* teacher = p.teacher.row(index);
  if (target < 0) {
    if (threadIdx.x == 0) p.losses[index] = p.divergences[index] = 0;
    if (!p.training) return;
    const float zeros[kVec] = {};
    for (int col = kVec * threadIdx.x; col < p.cols; col += kVec * blockDim.x) {
      Store<kVec>(logits + col, Rounded(zeros));
    }
    return;
  }
  const float target_logit = __bfloat162float(logits[target]);
  RowSums row;
#pragma unroll 2
  for (int col = kVec * threadIdx.x; col < p.vocab_size; col += kVec * blockDim.x) {
    float z[kVec], u[kVec];
    LogitsOf(Load<kVec>(logits + col), col, p.vocab_size, z);
    LogitsOf(Load<kVec>(teacher + col), col, p.vocab_size, u);
    Add(row, z, u, col, p);
  }
  // Its barriers also stand between the reading of the target's logit and its gradient's writing.
  ReduceOverBlock(row, p.inverse_temperature, shared);
  if (threadIdx.x == 0) {
    p.losses[index] = logf(row.sum) + (row.max - target_logit);
    p.divergences[index] =
        p.temperature * p.temperature *
        ((row.difference / row.teacher - row.teacher_max + row.max) * p.inverse_temperature -
         logf(row.teacher) + logf(row.softened));
  }
  if (p.training) WriteGradient<kVec>(p, row, logits, teacher, target);
}

}  // namespace

void CudaBackend::DistillationLoss(const DistillationLossArgs& args, Stream& stream) {
  const int64_t rows = args.logits.rows(), cols = args.logits.cols();
  CHECK(args.vocab_size >= 1 && args.vocab_size <= std::min(cols, args.teacher_logits.cols()))
      << "vocabulary of " << args.vocab_size << " in " << cols << " columns and the teacher's "
      << args.teacher_logits.cols();
  CHECK(args.temperature > 0) << args.temperature;
  const DistillationParams p = {
      .logits = AsRows<bf16>(args.logits, rows, cols, "logits"),
      .teacher =
          AsRows<bf16>(args.teacher_logits, rows, args.teacher_logits.cols(), "teacher_logits"),
      .targets = AsElements<int32_t>(args.targets, rows, "targets"),
      .losses = AsElements<float>(args.losses, rows, "losses"),
      .divergences = AsElements<float>(args.divergences, rows, "divergences"),
      .cols = static_cast<int>(cols),
      .vocab_size = static_cast<int>(args.vocab_size),
      .temperature = static_cast<float>(args.temperature),
      .inverse_temperature = static_cast<float>(1 / args.temperature),
      .hard = static_cast<float>(args.loss_scale * (1 - args.alpha)),
      .soft = static_cast<float>(args.loss_scale * args.alpha * args.temperature),
      .training = args.loss_scale != 0};
  if (rows == 0) return;
  // Two packs a thread and more.
  const int threads = static_cast<int>(
      std::clamp<int64_t>(AlignUp(cols / 16, kWarpThreads), kWarpThreads, kMaxRowThreads));
  if (TakeVectors(args.logits, args.teacher_logits)) {
    DistillationKernel<8><<<rows, threads, 0, NativeStream(stream)>>>(p);
  } else {
    DistillationKernel<1><<<rows, threads, 0, NativeStream(stream)>>>(p);
  }
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace filigree

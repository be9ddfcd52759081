// SumOfSquares: out[0] += sum of squares, F64, in an order that depends on the count and
// the alignment alone. ClipScale: what becomes of the sum.
#include <algorithm>

#include "kernels/base/math.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/device_rows.h"
#include "kernels/cuda/vectors.cuh"

namespace filigree {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxCtas = 1024;  // a constant, so that the sum is the same on every card

// The sum of `value` over the CTA, in thread 0; a fixed tree. All threads must call it.
__device__ __forceinline__ double SumOverCta(double value) {
  __shared__ double shared[kThreads];
  shared[threadIdx.x] = value;
  __syncthreads();
#pragma unroll
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
    __syncthreads();
  }
  return shared[0];
}

// Squares of kVec neighbours are added in F32, those sums in F64. Grid: at most kMaxCtas, strided
// over the vectors; the CTA that finishes last adds all partial sums, in their order, to out, and
// leaves `counter` at zero for the next launch. Bytes: the input once.
template <int kVec, typename T>
__global__ void __launch_bounds__(kThreads)
    SumOfSquaresKernel(const T* in, int64_t count, double* partials, uint32_t* counter,
                       double* out) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  const int64_t vectors = count / kVec;
  const int64_t thread = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  double sum = 0;
#pragma unroll 4
  for (int64_t i = thread; i < vectors; i += stride) {
    float values[kVec];
    LoadValues(in + i * kVec, values);
    float squares = 0;
#pragma unroll
    for (int k = 0; k < kVec; ++k) squares += values[k] * values[k];
    sum += squares;
  }
  for (int64_t i = vectors * kVec + thread; i < count; i += stride) {
    float value[1];
    LoadValues(in + i, value);
    sum += static_cast<double>(value[0] * value[0]);
  }
  sum = SumOverCta(sum);

  __shared__ bool is_last;
  if (threadIdx.x == 0) {
    partials[blockIdx.x] = sum;
    __threadfence();  // the partial sum is visible before the CTA is counted
    is_last = atomicAdd(counter, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!is_last) return;
  __threadfence();
  double total = 0;
  for (unsigned i = threadIdx.x; i < gridDim.x; i += kThreads) total += __ldcg(partials + i);
  total = SumOverCta(total);
  if (threadIdx.x == 0) {
    *out += total;
    *counter = 0;
  }
}

// One thread; division and root are rounded as the host's are.
__global__ void ClipScaleKernel(const double* sum_of_squares, double clip_norm, float* scale) {
  const double norm = sqrt(*sum_of_squares);
  double factor = clip_norm > 0 && norm > clip_norm ? clip_norm / norm : 1;
  if (!isfinite(norm)) factor = norm - norm;  // NaN
  *scale = static_cast<float>(factor);
}

template <typename T>
void Launch(ConstTensorView view, double* partials, uint32_t* counter, double* out,
            cudaStream_t stream) {
  const int64_t count = view.size();
  const T* in = AsElements<T>(view, count, "in");
  const bool vectors = reinterpret_cast<uintptr_t>(in) % 16 == 0;
  const int64_t per_cta = int64_t{kThreads} * (vectors ? 8 : 1);
  const auto grid = static_cast<unsigned>(std::min<int64_t>(kMaxCtas, CeilDiv(count, per_cta)));
  if (vectors) {
    SumOfSquaresKernel<8><<<grid, kThreads, 0, stream>>>(in, count, partials, counter, out);
  } else {
    SumOfSquaresKernel<1><<<grid, kThreads, 0, stream>>>(in, count, partials, counter, out);
  }
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void CudaBackend::SumOfSquares(const SumOfSquaresArgs& args, Stream& stream) {
  CHECK(args.out.size() == 1 && args.out.dtype() == DType::kF64) << NameOf(args.out.dtype());
  if (args.in.size() == 0) return;
  auto* out = args.out.As<double>();
  auto* partials = reinterpret_cast<double*>(Workspace(kMaxCtas * sizeof(double)));
  auto* counter = static_cast<uint32_t*>(sum_counter_.data());
  if (args.in.dtype() == DType::kF32) {
    Launch<float>(args.in, partials, counter, out, NativeStream(stream));
  } else {
    Launch<bf16>(args.in, partials, counter, out, NativeStream(stream));
  }
}

void CudaBackend::ClipScale(const ClipScaleArgs& args, Stream& stream) {
  ClipScaleKernel<<<1, 1, 0, NativeStream(stream)>>>(
      AsElements<double>(args.sum_of_squares, 1, "sum_of_squares"), args.clip_norm,
      AsElements<float>(args.scale, 1, "scale"));
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace filigree

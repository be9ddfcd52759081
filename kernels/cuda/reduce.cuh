// Sums and maxima over the threads of a warp or block, in an order that depends on nothing but the
// number of threads.
#pragma once

namespace filigree {

constexpr int kWarpThreads = 32;
constexpr int kMaxWarps = 32;

__device__ __forceinline__ float WarpSum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  return value;
}

__device__ __forceinline__ float WarpMax(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
  }
  return value;
}

// Every thread of the block gets the sum of `value`; all must call it. `shared` may be used again
// at once.
__device__ __forceinline__ float BlockSum(float value, float (&shared)[kMaxWarps]) {
  const int lane = threadIdx.x % kWarpThreads, warps = blockDim.x / kWarpThreads;
  value = WarpSum(value);
  if (lane == 0) shared[threadIdx.x / kWarpThreads] = value;
  __syncthreads();
  value = WarpSum(lane < warps ? shared[lane] : 0.0f);
  __syncthreads();
  return value;
}

// The same for two values at once, each over the `count` whole warps of the block from `first` on.
__device__ __forceinline__ float2 SumOverWarps(float2 value, int first, int count,
                                               float2 (&shared)[kMaxWarps]) {
  const int lane = threadIdx.x % kWarpThreads;
  value = make_float2(WarpSum(value.x), WarpSum(value.y));
  if (lane == 0) shared[threadIdx.x / kWarpThreads] = value;
  __syncthreads();
  const float2 other = lane < count ? shared[first + lane] : make_float2(0, 0);
  value = make_float2(WarpSum(other.x), WarpSum(other.y));
  __syncthreads();
  return value;
}

__device__ __forceinline__ float BlockMax(float value, float (&shared)[kMaxWarps]) {
  const int lane = threadIdx.x % kWarpThreads, warps = blockDim.x / kWarpThreads;
  value = WarpMax(value);
  if (lane == 0) shared[threadIdx.x / kWarpThreads] = value;
  __syncthreads();
  value = WarpMax(shared[lane < warps ? lane : 0]);
  __syncthreads();
  return value;
}

}  // namespace filigree

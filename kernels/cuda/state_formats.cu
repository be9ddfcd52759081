// Widen, Quantize, Dequantize: state as it is held, and plain numbers.
//
// WidenKernel, DequantizeKernel: an element a thread, strided. Bytes an element: 6, 5.
// QuantizeKernel: a warp a block of 256, eight neighbours a lane. Bytes an element: 5.
#include <algorithm>

#include "kernels/base/math.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/device_rows.h"
#include "kernels/cuda/moment_codes.cuh"
#include "kernels/cuda/vectors.cuh"

namespace filigree {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int64_t kMaxCtas = 132 * 8;  // eight for each multiprocessor of an H100
constexpr int kBlock = static_cast<int>(kQuantizationBlock);
static_assert(kBlock == 32 * 8);

__global__ void __launch_bounds__(kThreads) WidenKernel(const bf16* in, float* out, int64_t count) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    out[i] = __bfloat162float(in[i]);
  }
}

__global__ void __launch_bounds__(kThreads)
    DequantizeKernel(QuantizationMap map, const uint8_t* codes, const float* scales, float* out,
                     int64_t count) {
  __shared__ QuantizationTables tables;
  LoadTables(map, &tables);
  __syncthreads();
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    out[i] = tables.entries[codes[i]] * scales[i / kBlock];
  }
}

__global__ void __launch_bounds__(kThreads)
    QuantizeKernel(QuantizationMap map, const float* in, uint8_t* codes, float* scales,
                   int64_t count) {
  __shared__ QuantizationTables tables;
  LoadTables(map, &tables);
  __syncthreads();
  const int lane = threadIdx.x % 32;
  const int64_t blocks = (count + kBlock - 1) / kBlock;
  for (int64_t block = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32; block < blocks;
       block += int64_t{gridDim.x} * kWarps) {
    const int64_t begin = block * kBlock + 8 * lane;
    float values[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = begin + i < count ? in[begin + i] : 0.0f;
    const float scale = ScaleOfWarp(values);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (begin + i < count) {
        codes[begin + i] = static_cast<uint8_t>(CodeOf(tables, values[i], scale));
      }
    }
    if (lane == 0) scales[block] = scale;
  }
}

unsigned CtasFor(int64_t count) {
  return static_cast<unsigned>(std::min(CeilDiv(count, int64_t{kThreads}), kMaxCtas));
}

}  // namespace

void CudaBackend::Widen(const WidenArgs& args, Stream& stream) {
  const int64_t count = args.in.size();
  if (count == 0) return;
  WidenKernel<<<CtasFor(count), kThreads, 0, NativeStream(stream)>>>(
      AsElements<bf16>(args.in, count, "in"), AsElements<float>(args.out, count, "out"), count);
  CUDA_CHECK(cudaGetLastError());
}

void CudaBackend::Quantize(const QuantizeArgs& args, Stream& stream) {
  const int64_t count = args.in.size();
  if (count == 0) return;
  QuantizeKernel<<<CtasFor(count), kThreads, 0, NativeStream(stream)>>>(
      args.map, AsElements<float>(args.in, count, "in"),
      AsElements<uint8_t>(args.codes, count, "codes"),
      AsElements<float>(args.scales, CeilDiv(count, kQuantizationBlock), "scales"), count);
  CUDA_CHECK(cudaGetLastError());
}

void CudaBackend::Dequantize(const DequantizeArgs& args, Stream& stream) {
  const int64_t count = args.out.size();
  if (count == 0) return;
  DequantizeKernel<<<CtasFor(count), kThreads, 0, NativeStream(stream)>>>(
      args.map, AsElements<uint8_t>(args.codes, count, "codes"),
      AsElements<float>(args.scales, CeilDiv(count, kQuantizationBlock), "scales"),
      AsElements<float>(args.out, count, "out"), count);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace filigree

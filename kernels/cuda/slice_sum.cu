#include "kernels/base/math.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/device_rows.h"
#include "kernels/cuda/slice_sum.h"
#include "kernels/cuda/vectors.cuh"

namespace filigree {
namespace {

constexpr int kThreads = 256;

// kVec neighbours a thread. Bytes an element of the output: (slices + 1) * sizeof(T).
template <int kVec, typename T>
__global__ void __launch_bounds__(kThreads)
    SumSlicesKernel(const T* slices, int count, T* out, int64_t n) {
  const int64_t begin = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kVec;
  if (begin >= n) return;
  float sum[kVec];
  LoadValues(slices + begin, sum);
  for (int i = 1; i < count; ++i) {
    float values[kVec];
    LoadValues(slices + i * n + begin, values);
#pragma unroll
    for (int v = 0; v < kVec; ++v) sum[v] += values[v];
  }
  StoreValues(out + begin, sum);
}

template <typename T>
void Launch(const ConstTensorView& slices, const TensorView& out, cudaStream_t stream) {
  const int64_t n = out.size();
  const T* in = AsElements<T>(slices, slices.size(), "slices");
  T* sums = AsElements<T>(out, n, "out");
  const auto count = static_cast<int>(slices.size() / n);
  const bool vectors = n % 8 == 0 && HasAlignedRows(slices) && HasAlignedRows(out);
  const int64_t blocks = CeilDiv(n, int64_t{kThreads} * (vectors ? 8 : 1));
  CHECK_LT(blocks, int64_t{1} << 31);
  const auto grid = static_cast<unsigned>(blocks);
  if (vectors) {
    SumSlicesKernel<8><<<grid, kThreads, 0, stream>>>(in, count, sums, n);
  } else {
    SumSlicesKernel<1><<<grid, kThreads, 0, stream>>>(in, count, sums, n);
  }
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void SumSlices(ConstTensorView slices, TensorView out, Stream& stream) {
  if (out.size() == 0) return;
  CHECK_EQ(slices.size() % out.size(), 0) << "slices of " << out.size() << " elements";
  if (out.dtype() == DType::kBF16) {
    Launch<bf16>(slices, out, NativeStream(stream));
  } else {
    Launch<float>(slices, out, NativeStream(stream));
  }
}

}  // namespace filigree

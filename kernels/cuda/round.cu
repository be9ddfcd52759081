// Round: F32 to BF16 over contiguous elements.
#include "kernels/base/math.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/device_rows.h"
#include "kernels/cuda/vectors.cuh"

namespace filigree {
namespace {

constexpr int kThreads = 256;

// kVec elements a thread; the last count % kVec of them one by one. Bytes an element: 6.
template <int kVec>
__global__ void __launch_bounds__(kThreads) RoundKernel(const float* in, bf16* out, int64_t count) {
  const int64_t begin = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kVec;
  if (begin + kVec <= count) {
    float values[kVec];
    LoadValues(in + begin, values);
    StoreValues(out + begin, values);
    return;
  }
  for (int64_t i = begin; i < count; ++i) out[i] = __float2bfloat16_rn(in[i]);
}

}  // namespace

void CudaBackend::Round(const RoundArgs& args, Stream& stream) {
  const int64_t count = args.in.size();
  if (count == 0) return;
  const float* in = AsElements<float>(args.in, count, "in");
  bf16* out = AsElements<bf16>(args.out, count, "out");
  const bool vectors = HasAlignedRows(args.in) && HasAlignedRows(args.out);
  const int64_t blocks = CeilDiv(count, int64_t{kThreads} * (vectors ? 8 : 1));
  CHECK_LT(blocks, int64_t{1} << 31);
  const auto grid = static_cast<unsigned>(blocks);
  if (vectors) {
    RoundKernel<8><<<grid, kThreads, 0, NativeStream(stream)>>>(in, out, count);
  } else {
    RoundKernel<1><<<grid, kThreads, 0, NativeStream(stream)>>>(in, out, count);
  }
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace filigree

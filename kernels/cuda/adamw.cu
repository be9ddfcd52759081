// AdamW on flat segments: the update of kernels/backend.h, one pass over the state.
#include "kernels/base/math.h"
#include "kernels/cuda/adamw_compact.h"
#include "kernels/cuda/adamw_factors.cuh"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/device_rows.h"
#include "kernels/cuda/vectors.cuh"

namespace filigree {
namespace {

constexpr int kThreads = 256;

// The arrays of one call. `values` and `master` may be the same memory: each element is read and
// written by one thread.
template <typename Value, typename Grad>
struct State {
  Value* values;
  float* master;
  const Grad* grads;
  float* m;
  float* v;
  const float* born;  // read by aged kernels only
};

template <int kVec, bool kAged, typename Value, typename Grad>
__device__ __forceinline__ void Update(const State<Value, Grad>& state, int64_t i, float scale,
                                       const AdamWFactors& factors) {
  float g[kVec], w[kVec], m[kVec], v[kVec], born[kVec];
  LoadValues(state.grads + i, g);
  LoadValues(state.m + i, m);
  LoadValues(state.v + i, v);
  LoadValues(state.master + i, w);
  if constexpr (kAged) LoadValues(state.born + i, born);
#pragma unroll
  for (int k = 0; k < kVec; ++k) {
    AdamWFactors f = factors;
    if constexpr (kAged) f = AtAge(factors, born[k]);
    UpdateElement(f, g[k] * scale, &w[k], &m[k], &v[k]);
  }
  StoreValues(state.m + i, m);
  StoreValues(state.v + i, v);
  StoreValues(state.master + i, w);
  StoreValues(state.values + i, w);
}

// kVec elements a thread, the last count % kVec of them by the last thread one by one. Bytes an
// element: 30 with F32 gradients, 28 with BF16, and 4 more where elements have ages.
template <int kVec, bool kAged, typename Value, typename Grad>
__global__ void __launch_bounds__(kThreads)
    AdamWKernel(State<Value, Grad> state, int64_t count, const float* scale_pointer,
                AdamWFactors factors) {
  const float scale = __ldg(scale_pointer);
  if (!isfinite(scale)) return;
  const int64_t begin = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kVec;
  if (begin + kVec <= count) {
    Update<kVec, kAged>(state, begin, scale, factors);
    return;
  }
  for (int64_t i = begin; i < count; ++i) Update<1, kAged>(state, i, scale, factors);
}

template <bool kAged, typename Value, typename Grad>
void Launch(const AdamWArgs& args, const AdamWFactors& factors, cudaStream_t stream) {
  const int64_t count = args.values.size();
  const State<Value, Grad> state = {AsElements<Value>(args.values, count, "values"),
                                    AsElements<float>(args.master, count, "master"),
                                    AsElements<Grad>(args.grads, count, "grads"),
                                    AsElements<float>(args.m, count, "m"),
                                    AsElements<float>(args.v, count, "v"),
                                    kAged ? AsElements<float>(args.born, count, "born") : nullptr};
  const float* scale = AsElements<float>(args.scale, 1, "scale");
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  const bool vectors = aligned(state.values) && aligned(state.master) && aligned(state.grads) &&
                       aligned(state.m) && aligned(state.v) && aligned(state.born);
  const auto grid = static_cast<unsigned>(CeilDiv(count, int64_t{kThreads} * (vectors ? 8 : 1)));
  if (vectors) {
    AdamWKernel<8, kAged><<<grid, kThreads, 0, stream>>>(state, count, scale, factors);
  } else {
    AdamWKernel<1, kAged><<<grid, kThreads, 0, stream>>>(state, count, scale, factors);
  }
  CUDA_CHECK(cudaGetLastError());
}

template <bool kAged, typename Value>
void LaunchForGrads(const AdamWArgs& args, const AdamWFactors& factors, cudaStream_t stream) {
  if (args.grads.dtype() == DType::kF32) {
    Launch<kAged, Value, float>(args, factors, stream);
  } else {
    Launch<kAged, Value, bf16>(args, factors, stream);
  }
}

template <typename Value>
void LaunchForAges(const AdamWArgs& args, const AdamWFactors& factors, cudaStream_t stream) {
  if (args.born.empty()) {
    LaunchForGrads<false, Value>(args, factors, stream);
  } else {
    LaunchForGrads<true, Value>(args, factors, stream);
  }
}

}  // namespace

void CudaBackend::AdamW(const AdamWArgs& args, Stream& stream) {
  CHECK_GE(args.step, 1);
  if (args.values.size() == 0) return;
  if (args.master.empty() || args.m.dtype() == DType::kU8) {
    return LaunchAdamWCompact(args, NativeStream(stream));
  }
  const AdamWFactors factors = FactorsOf(args);
  if (args.values.dtype() == DType::kF32) {
    LaunchForAges<float>(args, factors, NativeStream(stream));
  } else {
    LaunchForAges<bf16>(args, factors, NativeStream(stream));
  }
}

}  // namespace filigree

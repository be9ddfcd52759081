#include "kernels/cpu/simd_kernels.h"

namespace filigree {

// Defined by simd_table.h in simd_baseline.cc, simd_avx2.cc and simd_avx512.cc.
namespace baseline {
const SimdKernels<float>& SimdTableF32();
const SimdKernels<double>& SimdTableF64();
}  // namespace baseline
#ifdef FILIGREE_X86_KERNELS
namespace avx2 {
const SimdKernels<float>& SimdTableF32();
const SimdKernels<double>& SimdTableF64();
}  // namespace avx2
namespace avx512 {
const SimdKernels<float>& SimdTableF32();
const SimdKernels<double>& SimdTableF64();
}  // namespace avx512
#endif

namespace {

enum class Isa { kBaseline, kAvx2, kAvx512 };

Isa DetectIsa() {
#ifdef FILIGREE_X86_KERNELS
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
  return Isa::kBaseline;
}

const Isa g_isa = DetectIsa();

}  // namespace

template <>
const SimdKernels<float>& Simd<float>() {
#ifdef FILIGREE_X86_KERNELS
  if (g_isa == Isa::kAvx512) return avx512::SimdTableF32();
  if (g_isa == Isa::kAvx2) return avx2::SimdTableF32();
#endif
  return baseline::SimdTableF32();
}

template <>
const SimdKernels<double>& Simd<double>() {
#ifdef FILIGREE_X86_KERNELS
  if (g_isa == Isa::kAvx512) return avx512::SimdTableF64();
  if (g_isa == Isa::kAvx2) return avx2::SimdTableF64();
#endif
  return baseline::SimdTableF64();
}

}  // namespace filigree

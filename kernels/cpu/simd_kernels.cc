#include "kernels/cpu/simd_kernels.h"

#include <cstdlib>
#include <string_view>

#include "kernels/base/check.h"

namespace filigree {

// Defined by simd_table.h in simd_baseline.cc, simd_avx2.cc and simd_avx512.cc, and by draw_loops.h in
// draw_baseline.cc, draw_avx2.cc and draw_avx512.cc.
#define FILIGREE_DECLARE_SIMD(isa)           \
  namespace isa {                            \
  const SimdKernels<float>& SimdTableF32();  \
  const SimdKernels<double>& SimdTableF64(); \
  const DrawKernels& DrawTable();            \
  }
FILIGREE_DECLARE_SIMD(baseline)
#ifdef FILIGREE_X86_KERNELS
FILIGREE_DECLARE_SIMD(avx2)
FILIGREE_DECLARE_SIMD(avx512)
#endif

namespace {

struct SimdTables {
  std::string_view name;
  bool supported;
  const SimdKernels<float>& f32;
  const SimdKernels<double>& f64;
  const DrawKernels& draws;
};

const SimdTables& ChosenTables() {
  static const SimdTables tables[] = {
#ifdef FILIGREE_X86_KERNELS
      {"avx512",
       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"),
       avx512::SimdTableF32(), avx512::SimdTableF64(), avx512::DrawTable()},
      {"avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"),
       avx2::SimdTableF32(), avx2::SimdTableF64(), avx2::DrawTable()},
#endif
      {"baseline", true, baseline::SimdTableF32(), baseline::SimdTableF64(), baseline::DrawTable()},
  };
  static const SimdTables& chosen = []() -> const SimdTables& {
    const char* wanted = std::getenv("FILIGREE_CPU_ISA");
    for (const SimdTables& candidate : tables) {
      if (candidate.supported && (wanted == nullptr || candidate.name == wanted)) return candidate;
    }
    CHECK(false) << "FILIGREE_CPU_ISA=" << wanted << " is not an instruction set of this processor";
    return tables[0];
  }();
  return chosen;
}

}  // namespace

template <>
const SimdKernels<float>& Simd<float>() {
  return ChosenTables().f32;
}

template <>
const SimdKernels<double>& Simd<double>() {
  return ChosenTables().f64;
}

const DrawKernels& SimdDraws() { return ChosenTables().draws; }

}  // namespace filigree

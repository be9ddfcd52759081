// Random numbers of many cells at once, in loops that compilers make vectors of. Defines DrawTable()
// in namespace filigree::FILIGREE_ISA as this translation unit compiles it.
//
// Included only by draw_baseline.cc, draw_avx2.cc and draw_avx512.cc, which are compiled without
// fusing products and sums, so that the bits are those of kernels/base/rng.h with every instruction
// set. Nothing here calls inline functions of std: see simd_vector.h.
#include "kernels/base/exact_random.h"
#include "kernels/cpu/simd_kernels.h"

namespace filigree {
namespace {

template <typename Number>
inline __attribute__((always_inline)) void DrawEach(const DrawArgs& args, const Number& number) {
  const uint64_t seed = args.seed, stream = args.stream;
  const double scale = args.scale;
  const int64_t* __restrict cells = args.cells;
  float* __restrict out = args.out;
  for (int64_t i = 0; i < args.count; ++i) {
    const exact::Words words = exact::Philox(seed, stream, static_cast<uint64_t>(cells[i]));
    out[i] = static_cast<float>(exact::Multiply(scale, number(words)));
  }
}

void DrawNormals(const DrawArgs& args) {
  DrawEach(args, [](const exact::Words& words)
                     __attribute__((always_inline)) { return exact::Normal(words); });
}

void DrawUniforms(const DrawArgs& args) {
  DrawEach(args, [](const exact::Words& words)
                     __attribute__((always_inline)) { return exact::Uniform(words); });
}

constexpr DrawKernels kDrawTable = {.normals = DrawNormals, .uniforms = DrawUniforms};

}  // namespace

namespace FILIGREE_ISA {
const DrawKernels& DrawTable() { return kDrawTable; }
}  // namespace FILIGREE_ISA

}  // namespace filigree

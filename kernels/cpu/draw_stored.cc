// DrawStored: random numbers of stored cells.
#include <algorithm>
#include <array>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/matrix.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd_kernels.h"
#include "kernels/sparse/stored_runs.h"

namespace filigree {
namespace {

constexpr int64_t kPiece = 2048;  // slots whose cells are listed at a time
constexpr int64_t kPiecesWorthAThread = 4;

}  // namespace

void CpuBackend::DrawStored(const DrawStoredArgs& args, Stream&) {
  const SparseLayout& layout = args.layout->layout();
  const int64_t n = args.out.size();
  float* out = AsVector<float>(args.out, n, "out");
  const int64_t stored = std::clamp<int64_t>(layout.stored_count() - args.first, 0, n);
  const DrawKernels& kernels = SimdDraws();
  const auto draw =
      args.draw.kind == DrawKind::kNormal ? kernels.normals : kernels.uniforms;
  ParallelFor(CeilDiv(stored, kPiece), kPiecesWorthAThread, [&](int64_t begin, int64_t end) {
    std::array<int64_t, kPiece> cells;
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t first = piece * kPiece, count = std::min(kPiece, stored - first);
      CellsOfSlots(layout, args.first + first, count, cells.data());
      draw({.seed = args.draw.seed,
            .stream = args.draw.stream,
            .scale = args.draw.scale,
            .cells = cells.data(),
            .out = out + first,
            .count = count});
      for (int64_t i = 0; i < count; ++i) {
        if (cells[i] < 0) out[first + i] = 0.0f;
      }
    }
  });
  std::fill(out + stored, out + n, 0.0f);
}

}  // namespace filigree

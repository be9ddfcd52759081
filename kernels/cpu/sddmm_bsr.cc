// The stored cells of dy^T x: the gradient of a blocked weight. block_panels.h has the idea.
#include <algorithm>

#include "kernels/cpu/block_panels.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/wide_grad.h"

namespace filigree {
namespace {

// All panels of a chunk, packed by all threads.
template <typename T>
const T* PackPanels(ScratchSlot slot, const Matrix<const T>& x, int64_t first, int64_t tokens,
                    int64_t block) {
  const int64_t count = CeilDiv(x.cols, block), width = PaddedWidth<T>(block);
  const int64_t size = PaddedTokens<T>(tokens) * width;
  T* panels = Scratch<T>(slot, count * size);
  ParallelFor(count, 8, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      PackPanel(x, first, tokens, c * block, block, width, panels + c * size);
    }
  });
  return panels;
}

// dvalues of one block += the product of its two panels, inside the weight.
template <typename T>
void AddBlockGradient(const SparseLayout& layout, const TileTerm<T>& term, int64_t row,
                      int64_t column, T* dvalues) {
  const auto& simd = Simd<T>();
  const int64_t height = layout.block_out(), width = layout.block_in();
  const int64_t rows = std::min(height, layout.out() - row * height);
  const int64_t columns = std::min(width, layout.in() - column * width);
  alignas(64) T tile[kTileElements];
  ForEachTile<T>(rows, columns, [&](int64_t i, int64_t j, int vectors) {
    simd.tile_product({.terms = &term,
                       .term_count = 1,
                       .a_first = i,
                       .b_first = j,
                       .a_row = 1,
                       .a_depth = PaddedWidth<T>(height),
                       .b_row = PaddedWidth<T>(width),
                       .vectors = vectors,
                       .tile = tile});
    const int64_t tile_width = vectors * simd.lanes;
    for (int64_t r = 0; r < std::min(simd.tile_rows, rows - i); ++r) {
      T* to = dvalues + (i + r) * width + j;
      simd.add(to, tile + r * tile_width, to, std::min(tile_width, columns - j));
    }
  });
}

template <typename T>
void SddmmOf(const SddmmArgs& args) {
  const CpuPreparedLayout& prepared = Prepared(args.weight);
  const SparseLayout& layout = prepared.layout();
  const SparseLayout::Transposed& index = prepared.transposed;
  const int64_t height = layout.block_out(), width = layout.block_in();
  const int64_t tokens = args.x.rows();
  const auto dy = AsMatrix<T>(args.dy, tokens, layout.out(), "dy");
  const auto x = AsMatrix<T>(args.x, tokens, layout.in(), "x");
  T* dvalues = AsVector<T>(args.dvalues, layout.stored_count(), "dvalues");
  if (!args.accumulate) std::fill(dvalues, dvalues + layout.stored_count(), T(0));
  // Chunks do not depend on the number of threads, so neither do the sums.
  for (int64_t first = 0; first < tokens; first += kChunkTokens) {
    const int64_t count = std::min(kChunkTokens, tokens - first);
    const T* dy_panels = PackPanels(ScratchSlot::kPanels, dy, first, count, height);
    const T* x_panels = PackPanels(ScratchSlot::kMorePanels, x, first, count, width);
    const int64_t dy_size = PaddedTokens<T>(count) * PaddedWidth<T>(height);
    const int64_t x_size = PaddedTokens<T>(count) * PaddedWidth<T>(width);
    // By block columns: the panel of x stays in the cache.
    ParallelFor(layout.block_count(), 4, [&](int64_t begin, int64_t end) {
      int64_t column = 0;
      for (int64_t q = begin; q < end; ++q) {
        while (q >= index.column_offsets[column + 1]) ++column;
        AddBlockGradient<T>(
            layout, {dy_panels + index.rows[q] * dy_size, x_panels + column * x_size, count},
            index.rows[q], column, dvalues + index.slots[q] * height * width);
      }
    });
  }
}

}  // namespace

void CpuBackend::Sddmm(const SddmmArgs& args, Stream& stream) {
  if (!args.dy_sums.empty()) {
    ColumnSum({.in = args.dy, .out = args.dy_sums, .accumulate = args.accumulate_sums}, stream);
  }
  const WideGrad dvalues(args.dvalues, ScratchSlot::kWideGrad, args.accumulate);
  SddmmArgs wide = args;
  wide.dvalues = dvalues.view();
  DispatchFloat(args.dy.dtype(), [&](auto t) { SddmmOf<decltype(t)>(wide); });
}

}  // namespace filigree

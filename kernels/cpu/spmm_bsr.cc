// y = x W^T + bias and dx = dy W over stored blocks. block_panels.h has the idea.
#include <algorithm>

#include "kernels/cpu/block_panels.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/product_epilogue.h"
#include "kernels/low_rank_term.h"

namespace filigree {
namespace {

// Stored blocks as a product reads them: block b is [depth, row] at data + b * size.
template <typename T>
struct BlockMatrices {
  const T* data;
  int64_t size, row;
};

// out (+)= in * blocks + bias. For output block column o, the terms are those of
// [offsets[o], offsets[o + 1]): input block column panels[i] times block slots[i] (or i).
template <typename T>
struct BlockProduct {
  Matrix<const T> in;
  int64_t in_block;
  Matrix<T> out;
  int64_t out_block;
  BlockMatrices<T> blocks;
  const int64_t* offsets;
  const int32_t* panels;
  const int64_t* slots;  // or null
  const T* bias;         // or null
  bool accumulate;
};

// Writes a tile's part inside the output.
template <typename T>
void PutTile(const BlockProduct<T>& product, const T* tile, int64_t tile_width, int64_t first_row,
             int64_t rows, int64_t first_column, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i) {
    T* out = product.out.row(first_row + i) + first_column;
    const T* from = tile + i * tile_width;
    if (product.accumulate) {
      for (int64_t j = 0; j < columns; ++j) out[j] += from[j];
    } else if (product.bias != nullptr) {
      for (int64_t j = 0; j < columns; ++j) out[j] = from[j] + product.bias[first_column + j];
    } else {
      std::copy(from, from + columns, out);
    }
  }
}

template <typename T>
void MultiplyChunk(const BlockProduct<T>& product, int64_t first, int64_t tokens) {
  const auto& simd = Simd<T>();
  const int64_t panel_count = CeilDiv(product.in.cols, product.in_block);
  const int64_t width = PaddedWidth<T>(product.in_block);
  const int64_t panel_size = PaddedTokens<T>(tokens) * width;
  T* panels = Scratch<T>(ScratchSlot::kPanels, panel_count * panel_size);
  for (int64_t c = 0; c < panel_count; ++c) {
    PackPanel(product.in, first, tokens, c * product.in_block, product.in_block, width,
              panels + c * panel_size);
  }
  auto* terms = Scratch<TileTerm<T>>(ScratchSlot::kTerms, panel_count);
  alignas(64) T tile[kTileElements];
  for (int64_t o = 0; o * product.out_block < product.out.cols; ++o) {
    const int64_t begin = product.offsets[o], count = product.offsets[o + 1] - begin;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t panel = product.panels[begin + i];
      const int64_t slot = product.slots != nullptr ? product.slots[begin + i] : begin + i;
      // Padding past the edge of the weight is not read.
      const int64_t depth = std::min(product.in_block, product.in.cols - panel * product.in_block);
      terms[i] = {panels + panel * panel_size, product.blocks.data + slot * product.blocks.size,
                  depth};
    }
    const int64_t column = o * product.out_block;
    const int64_t columns = std::min(product.out_block, product.out.cols - column);
    ForEachTile<T>(tokens, columns, [&](int64_t i, int64_t j, int vectors) {
      simd.tile_product({.terms = terms,
                         .term_count = count,
                         .a_first = i * width,
                         .b_first = j,
                         .a_row = width,
                         .a_depth = 1,
                         .b_row = product.blocks.row,
                         .vectors = vectors,
                         .tile = tile});
      PutTile(product, tile, vectors * simd.lanes, first + i, std::min(simd.tile_rows, tokens - i),
              column + j, std::min(vectors * simd.lanes, columns - j));
    });
  }
}

template <typename T>
void Multiply(const BlockProduct<T>& product) {
  const int64_t tokens = product.in.rows;
  if (tokens == 0) return;
  const int64_t share = AlignUp(CeilDiv(tokens, CpuThreads()), Simd<T>().tile_rows);
  const int64_t chunk = std::min(kChunkTokens, share);
  ParallelFor(CeilDiv(tokens, chunk), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      MultiplyChunk(product, i * chunk, std::min(chunk, tokens - i * chunk));
    }
  });
}

template <typename T>
void SpmmOf(const SpmmArgs& args, TensorView y) {
  const SparseLayout& layout = Prepared(args.weight).layout();
  const int64_t height = layout.block_out(), width = layout.block_in();
  const int64_t tokens = args.x.rows(), padded = PaddedWidth<T>(height);
  const T* values = AsVector<T>(args.values, layout.stored_count(), "values");
  // Each block transposed: [width, padded height].
  T* blocks = Scratch<T>(ScratchSlot::kWeights, layout.block_count() * width * padded);
  ParallelFor(layout.block_count(), 16, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const T* from = values + p * height * width;
      T* to = blocks + p * width * padded;
      for (int64_t j = 0; j < width; ++j) {
        for (int64_t i = 0; i < height; ++i) to[j * padded + i] = from[i * width + j];
        std::fill(to + j * padded + height, to + (j + 1) * padded, T(0));
      }
    }
  });
  Multiply<T>({
      .in = AsMatrix<T>(args.x, tokens, layout.in(), "x"),
      .in_block = width,
      .out = AsMatrix<T>(y, tokens, layout.out(), "y"),
      .out_block = height,
      .blocks = {blocks, width * padded, padded},
      .offsets = layout.row_offsets().data(),
      .panels = layout.columns().data(),
      .slots = nullptr,
      .bias = args.bias.empty() ? nullptr : AsVector<T>(args.bias, layout.out(), "bias"),
      .accumulate = false,
  });
}

// The stored blocks themselves, or copies whose rows are whole vectors.
template <typename T>
BlockMatrices<T> RowsOfVectors(const SparseLayout& layout, const T* values) {
  const int64_t height = layout.block_out(), width = layout.block_in();
  if (width % Simd<T>().lanes == 0) return {values, height * width, width};
  const int64_t padded = PaddedWidth<T>(width), rows = layout.block_count() * height;
  T* copies = Scratch<T>(ScratchSlot::kWeights, rows * padded);
  ParallelFor(rows, 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* rest = std::copy(values + i * width, values + (i + 1) * width, copies + i * padded);
      std::fill(rest, copies + (i + 1) * padded, T(0));
    }
  });
  return {copies, height * padded, padded};
}

template <typename T>
void SpmmTransposedOf(const SpmmTransposedArgs& args, TensorView dx) {
  const CpuPreparedLayout& prepared = Prepared(args.weight);
  const SparseLayout& layout = prepared.layout();
  const int64_t tokens = args.dy.rows();
  const T* values = AsVector<T>(args.values, layout.stored_count(), "values");
  Multiply<T>({
      .in = AsMatrix<T>(args.dy, tokens, layout.out(), "dy"),
      .in_block = layout.block_out(),
      .out = AsMatrix<T>(dx, tokens, layout.in(), "dx"),
      .out_block = layout.block_in(),
      .blocks = RowsOfVectors(layout, values),
      .offsets = prepared.transposed.column_offsets.data(),
      .panels = prepared.transposed.rows.data(),
      .slots = prepared.transposed.slots.data(),
      .bias = nullptr,
      .accumulate = args.accumulate,
  });
}

}  // namespace

void CpuBackend::Spmm(const SpmmArgs& args, Stream& stream) {
  if (!args.low_rank.factors.empty()) return SpmmThenFactors(*this, args, stream);
  const TensorView result = args.epilogue.ResultIn(args.y);
  DispatchFloat(result.dtype(), [&](auto t) { SpmmOf<decltype(t)>(args, result); });
  FinishProduct(*this, args.y, args.epilogue, stream);
}
void CpuBackend::SpmmTransposed(const SpmmTransposedArgs& args, Stream& stream) {
  if (!args.low_rank.factors.empty()) return SpmmTransposedThenFactors(*this, args, stream);
  const TensorView result = args.epilogue.ResultIn(args.dx);
  DispatchFloat(result.dtype(), [&](auto t) { SpmmTransposedOf<decltype(t)>(args, result); });
  FinishProduct(*this, args.dx, args.epilogue, stream);
}

}  // namespace filigree

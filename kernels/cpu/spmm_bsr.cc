// Blocked products: y = x W^T, dx = dy W and the stored cells of dy^T x.
//
// All three are sums of small dense products over stored blocks. Activations are first copied, a
// chunk of tokens at a time, into panels: one [tokens, block width] matrix for each block column,
// contiguous and padded to whole vectors. Without them the rows of a wide matrix, a power of two
// apart, would evict one another from the cache, and every edge would need its own loop.
#include <algorithm>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_prepared_layout.h"
#include "kernels/cpu/matrix.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd_kernels.h"

namespace filigree {
namespace {

// Tokens of a chunk. Two panels of 32 columns fill 32 KiB (tuned on an AMD EPYC 9004).
constexpr int64_t kChunkTokens = 128;
// The largest tile: 8 rows of 2 vectors of 64 bytes.
constexpr int64_t kTileElements = 8 * 2 * 16;

const CpuPreparedLayout& Prepared(const PreparedLayout* weight) {
  const auto* prepared = dynamic_cast<const CpuPreparedLayout*>(weight);
  CHECK(prepared != nullptr) << "the layout was not prepared by the CPU backend";
  CHECK(prepared->layout().kind() == LayoutKind::kBlocked)
      << "blocked products need a blocked layout, not " << NameOf(prepared->layout().kind());
  return *prepared;
}

// The width of a panel or a rearranged block: whole vectors, and whole tiles where its columns
// become rows of a tile.
template <typename T>
int64_t PaddedWidth(int64_t block) {
  return AlignUp(block, std::max(Simd<T>().lanes, Simd<T>().tile_rows));
}

template <typename T>
int64_t PaddedTokens(int64_t tokens) {
  return AlignUp(tokens, Simd<T>().tile_rows);
}

// panel[PaddedTokens(tokens), width] = x[first .. first + tokens, column .. column + block), zero
// where there is nothing.
template <typename T>
void PackPanel(const Matrix<const T>& x, int64_t first, int64_t tokens, int64_t column,
               int64_t block, int64_t width, T* panel) {
  const int64_t inside = std::min(block, x.cols - column);
  for (int64_t t = 0; t < tokens; ++t, panel += width) {
    const T* row = x.row(first + t) + column;
    std::copy(row, row + inside, panel);
    std::fill(panel + inside, panel + width, T(0));
  }
  std::fill(panel, panel + (PaddedTokens<T>(tokens) - tokens) * width, T(0));
}

// Calls fn(row, column, vectors) for the tiles that cover [rows, columns).
template <typename T, typename Fn>
void ForEachTile(int64_t rows, int64_t columns, const Fn& fn) {
  const int64_t lanes = Simd<T>().lanes;
  for (int64_t j = 0; j < columns; j += 2 * lanes) {
    const int vectors = columns - j > lanes ? 2 : 1;
    for (int64_t i = 0; i < rows; i += Simd<T>().tile_rows) fn(i, j, vectors);
  }
}

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
void SpmmOf(const SpmmArgs& args) {
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
      .out = AsMatrix<T>(args.y, tokens, layout.out(), "y"),
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
  for (int64_t i = 0; i < rows; ++i) {
    T* end = std::copy(values + i * width, values + (i + 1) * width, copies + i * padded);
    std::fill(end, copies + (i + 1) * padded, T(0));
  }
  return {copies, height * padded, padded};
}

template <typename T>
void SpmmTransposedOf(const SpmmTransposedArgs& args) {
  const CpuPreparedLayout& prepared = Prepared(args.weight);
  const SparseLayout& layout = prepared.layout();
  const int64_t tokens = args.dy.rows();
  const T* values = AsVector<T>(args.values, layout.stored_count(), "values");
  Multiply<T>({
      .in = AsMatrix<T>(args.dy, tokens, layout.out(), "dy"),
      .in_block = layout.block_out(),
      .out = AsMatrix<T>(args.dx, tokens, layout.in(), "dx"),
      .out_block = layout.block_in(),
      .blocks = RowsOfVectors(layout, values),
      .offsets = prepared.transposed.column_offsets.data(),
      .panels = prepared.transposed.rows.data(),
      .slots = prepared.transposed.slots.data(),
      .bias = nullptr,
      .accumulate = args.accumulate,
  });
}

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

void CpuBackend::Spmm(const SpmmArgs& args, Stream&) {
  DispatchFloat(args.y.dtype(), [&](auto t) { SpmmOf<decltype(t)>(args); });
}
void CpuBackend::SpmmTransposed(const SpmmTransposedArgs& args, Stream&) {
  DispatchFloat(args.dx.dtype(), [&](auto t) { SpmmTransposedOf<decltype(t)>(args); });
}
void CpuBackend::Sddmm(const SddmmArgs& args, Stream&) {
  DispatchFloat(args.dvalues.dtype(), [&](auto t) { SddmmOf<decltype(t)>(args); });
}

}  // namespace filigree

// Stored values to a dense weight and back, for every layout kind.
//
// Unstructured and n:m layouts are blocked ones with blocks of 1 x 1. In row i of the weight, entry
// e of the row is cell e % width of block e / width of its grid row, stored at
// ((first block + e / width) * height + i % height) * width + e % width.
#include <type_traits>

#include "kernels/base/math.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/device_rows.h"
#include "kernels/cuda/layout_index.cuh"
#include "kernels/cuda/prepared_layout.h"
#include "kernels/cuda/vectors.cuh"

namespace filigree {
namespace {

constexpr int kThreads = 256;
// Columns of the weight that a CTA of the scatter assembles in shared memory at a time.
constexpr int kTileCols = 8192;

// The first block of [begin, end) whose column is at least `column`.
template <typename Column>
__device__ __forceinline__ uint32_t LowerBound(const Column* columns, uint32_t begin, uint32_t end,
                                               int64_t column) {
  while (begin < end) {
    const uint32_t middle = begin + (end - begin) / 2;
    if (columns[middle] < column) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

// One CTA a row: each tile of the row is cleared in shared memory, its stored cells are laid into
// it, and it leaves in whole vectors; so every dense element is written exactly once. Tiles begin
// at multiples of 8; a block across two tiles takes part in both. Bytes: 2 a stored cell, its
// index, 2 a dense cell.
template <typename Column, bool kVectorValues, bool kVectorDense>
__global__ void __launch_bounds__(kThreads)
    ScatterKernel(Index<Column> index, const bf16* values, Rows<bf16> dense) {
  __shared__ __align__(16) bf16 tile[kTileCols];
  const int64_t row = blockIdx.x;
  const int64_t grid_row = row / index.height;
  const uint32_t row_begin = index.row_offsets[grid_row], row_end = index.row_offsets[grid_row + 1];
  constexpr int kVec = kVectorValues ? 8 : 1;
  const uint32_t per_block = index.width / kVec;
  for (int64_t first = 0; first < index.in; first += kTileCols) {
    const int count = static_cast<int>(min(int64_t{kTileCols}, index.in - first));
    for (int i = threadIdx.x; i < (count + 7) / 8; i += kThreads) {
      reinterpret_cast<uint4*>(tile)[i] = make_uint4(0, 0, 0, 0);
    }
    __syncthreads();
    const uint32_t begin = LowerBound(index.columns, row_begin, row_end, first / index.width);
    const uint32_t end =
        LowerBound(index.columns, begin, row_end, (first + count + index.width - 1) / index.width);
    const uint32_t entries = (end - begin) * per_block;
    for (uint32_t e = threadIdx.x; e < entries; e += kThreads) {
      const uint32_t block = begin + e / per_block;
      const int inside = static_cast<int>(e % per_block) * kVec;
      const int64_t slot =
          (int64_t{block} * index.height + row % index.height) * index.width + inside;
      const int64_t at = int64_t{index.columns[block]} * index.width + inside - first;
      if (at < 0 || at >= count) continue;
      // A vector reaches at most to the next multiple of 8, which the tile has room for.
      *reinterpret_cast<Bf16Pack<kVec>*>(tile + at) = Load<kVec>(values + slot);
    }
    __syncthreads();
    bf16* to = dense.row(row) + first;
    const int vectors = kVectorDense ? count / 8 : 0;
    for (int i = threadIdx.x; i < vectors; i += kThreads) {
      reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(tile)[i];
    }
    for (int i = 8 * vectors + threadIdx.x; i < count; i += kThreads) to[i] = tile[i];
    __syncthreads();  // before the next tile is cleared
  }
}

// Calls fn(columns, slots, count) for a thread's entries of row `row`, up to kBatch at a time so
// that their loads overlap. kRowThreads threads share the row, of which this is number `thread`.
template <int kVec, int kRowThreads, int kBatch, typename Column, typename Fn>
__device__ __forceinline__ void ForEntries(const Index<Column>& index, int64_t row, int thread,
                                           const Fn& fn) {
  const int64_t grid_row = row / index.height;
  const uint32_t begin = index.row_offsets[grid_row], end = index.row_offsets[grid_row + 1];
  const uint32_t per_block = index.width / kVec;
  const uint32_t entries = (end - begin) * per_block;
  for (uint32_t first = thread; first < entries; first += kRowThreads * kBatch) {
    int64_t columns[kBatch], slots[kBatch];
    int count = 0;
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const uint32_t e = first + b * kRowThreads;
      if (e >= entries) continue;
      const uint32_t block = begin + e / per_block;
      const int inside = static_cast<int>(e % per_block) * kVec;
      slots[b] = (int64_t{block} * index.height + row % index.height) * index.width + inside;
      columns[b] = int64_t{index.columns[block]} * index.width + inside;
      count = b + 1;
    }
    fn(columns, slots, count);
  }
}

// Rows with few entries are a warp's, others a CTA's.
constexpr int kWarpRowEntries = 512;
template <int kRowThreads>
constexpr int kCtaRows = kThreads / kRowThreads;

// kRowThreads threads a padded row. Reads of the dense row are as dense as the stored cells are: of
// one that a product has just written, most are hits in the L2. Values are written in order. Edge
// padding receives zero, or keeps what it has when accumulating.
template <typename Column, typename Dense, typename Value, int kVec, int kRowThreads>
__global__ void __launch_bounds__(kThreads)
    GatherKernel(Index<Column> index, Rows<const Dense> dense, Value* values, int64_t rows,
                 bool accumulate) {
  constexpr int kBatch = kVec == 1 ? 4 : 1;
  const int64_t row = int64_t{blockIdx.x} * kCtaRows<kRowThreads> + threadIdx.x / kRowThreads;
  if (row >= rows) return;
  const auto gather = [&](const int64_t(&columns)[kBatch], const int64_t(&slots)[kBatch],
                          int count) {
    float sum[kBatch][kVec] = {};
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (b >= count) continue;
      // Where vectors are used the weight's width is a multiple of them: a vector is inside or
      // outside.
      if (row < index.out && columns[b] < index.in) {
        LoadValues(dense.row(row) + columns[b], sum[b]);
      }
      if (accumulate) {
        float old[kVec];
        LoadValues(values + slots[b], old);
#pragma unroll
        for (int i = 0; i < kVec; ++i) sum[b][i] += old[i];
      }
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (b < count) StoreValues(values + slots[b], sum[b]);
    }
  };
  ForEntries<kVec, kRowThreads, kBatch>(index, row, threadIdx.x % kRowThreads, gather);
}

// Adds the stored cells to a dense weight in place, kRowThreads threads a row. Bytes: 2 a stored
// cell and its index, and two sectors of 32 for each that holds one; of a weight that a product has
// just written, most are hits in the L2.
template <typename Column, int kVec, int kRowThreads>
__global__ void __launch_bounds__(kThreads)
    AddKernel(Index<Column> index, const bf16* values, Rows<bf16> dense) {
  constexpr int kBatch = kVec == 1 ? 4 : 1;
  const int64_t row = int64_t{blockIdx.x} * kCtaRows<kRowThreads> + threadIdx.x / kRowThreads;
  if (row >= index.out) return;
  const auto add = [&](const int64_t(&columns)[kBatch], const int64_t(&slots)[kBatch], int count) {
    float sum[kBatch][kVec];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (b >= count || columns[b] >= index.in) continue;
      float value[kVec];
      LoadValues(values + slots[b], value);
      LoadValues(dense.row(row) + columns[b], sum[b]);
#pragma unroll
      for (int i = 0; i < kVec; ++i) sum[b][i] += value[i];
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (b < count && columns[b] < index.in) StoreValues(dense.row(row) + columns[b], sum[b]);
    }
  };
  ForEntries<kVec, kRowThreads, kBatch>(index, row, threadIdx.x % kRowThreads, add);
}

// Calls fn with kVec and kRowThreads, as types, for entries of single cells or of vectors.
template <typename Fn>
void WithRowShape(const SparseLayout& layout, bool vectors, const Fn& fn) {
  using std::integral_constant;
  const int64_t entries =
      layout.block_count() * layout.block_in() / (vectors ? 8 : 1) / layout.grid_rows();
  const auto with_vectors = [&](auto vec) {
    entries <= kWarpRowEntries ? fn(vec, integral_constant<int, 32>{})
                               : fn(vec, integral_constant<int, kThreads>{});
  };
  vectors ? with_vectors(integral_constant<int, 8>{}) : with_vectors(integral_constant<int, 1>{});
}

unsigned GridOf(int64_t rows, int row_threads) {
  return static_cast<unsigned>(CeilDiv(rows, int64_t{kThreads / row_threads}));
}

// The dense matrix that a dense layout's values are.
template <typename View>
View Matrix(View values, const SparseLayout& layout) {
  return values.Reshape({layout.out(), layout.row_pitch()}).Cols(0, layout.in());
}

template <typename Dense, typename Value>
void Gather(const GatherStoredArgs& args, cudaStream_t stream) {
  const CudaPreparedLayout& prepared = Prepared(args.weight);
  const SparseLayout& layout = prepared.layout();
  const auto dense = AsRows<Dense>(args.dense, layout.out(), layout.in(), "dense");
  Value* values = AsElements<Value>(args.values, layout.stored_count(), "values");
  const bool vectors = layout.block_in() % 8 == 0 && TakesVectors(args.dense) &&
                       reinterpret_cast<uintptr_t>(values) % 16 == 0;
  const int64_t rows = layout.grid_rows() * layout.block_out();
  WithIndex(prepared, [&](auto index) {
    using Column = std::remove_cvref_t<decltype(*index.columns)>;
    WithRowShape(layout, vectors, [&](auto vec, auto row_threads) {
      constexpr int kVec = decltype(vec)::value, kRowThreads = decltype(row_threads)::value;
      GatherKernel<Column, Dense, Value, kVec, kRowThreads>
          <<<GridOf(rows, kRowThreads), kThreads, 0, stream>>>(index, dense, values, rows,
                                                               args.accumulate);
    });
  });
  CUDA_CHECK(cudaGetLastError());
}

void AddStored(const ScatterStoredArgs& args, cudaStream_t stream) {
  const CudaPreparedLayout& prepared = Prepared(args.weight);
  const SparseLayout& layout = prepared.layout();
  const auto dense = AsRows<bf16>(args.dense, layout.out(), layout.in(), "dense");
  const bf16* values = AsElements<bf16>(args.values, layout.stored_count(), "values");
  const bool vectors = layout.block_in() % 8 == 0 && TakesVectors(args.dense) &&
                       reinterpret_cast<uintptr_t>(values) % 16 == 0;
  WithIndex(prepared, [&](auto index) {
    using Column = std::remove_cvref_t<decltype(*index.columns)>;
    WithRowShape(layout, vectors, [&](auto vec, auto row_threads) {
      constexpr int kVec = decltype(vec)::value, kRowThreads = decltype(row_threads)::value;
      AddKernel<Column, kVec, kRowThreads>
          <<<GridOf(layout.out(), kRowThreads), kThreads, 0, stream>>>(index, values, dense);
    });
  });
  CUDA_CHECK(cudaGetLastError());
}

// A dense layout's gather in place of a table: one block a row, padding included.
template <typename Dense, typename Value>
__global__ void __launch_bounds__(kThreads)
    GatherDenseKernel(Rows<const Dense> dense, int64_t cols, Rows<Value> values, bool accumulate) {
  const int64_t row = blockIdx.x;
  for (int64_t col = threadIdx.x; col < values.stride; col += kThreads) {
    float sum[1] = {}, old[1];
    if (col < cols) LoadValues(dense.row(row) + col, sum);
    Value* to = values.row(row) + col;
    if (accumulate) {
      LoadValues(to, old);
      sum[0] += old[0];
    }
    StoreValues(to, sum);
  }
}

template <typename Dense, typename Value>
void GatherAny(const GatherStoredArgs& args, cudaStream_t stream) {
  const SparseLayout& layout = args.weight->layout();
  if (layout.stored_count() == 0) return;
  if (layout.kind() != LayoutKind::kDense) return Gather<Dense, Value>(args, stream);
  GatherDenseKernel<<<static_cast<unsigned>(layout.out()), kThreads, 0, stream>>>(
      AsRows<Dense>(args.dense, layout.out(), layout.in(), "dense"), layout.in(),
      AsRows<Value>(Matrix(args.values, layout), layout.out(), layout.in(), "values"),
      args.accumulate);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace

void CudaBackend::ScatterStored(const ScatterStoredArgs& args, Stream& stream) {
  const CudaPreparedLayout& prepared = Prepared(args.weight);
  const SparseLayout& layout = prepared.layout();
  const auto dense = AsRows<bf16>(args.dense, layout.out(), layout.in(), "dense");
  const bf16* values = AsElements<bf16>(args.values, layout.stored_count(), "values");
  if (layout.logical_count() == 0) return;
  if (layout.kind() == LayoutKind::kDense) {
    const ConstTensorView matrix = Matrix(args.values, layout);
    if (args.accumulate) return Add({.a = args.dense, .b = matrix, .out = args.dense}, stream);
    return device_.CopyAsync(args.dense, matrix, stream);
  }
  if (args.accumulate) {
    return layout.stored_count() == 0 ? void() : AddStored(args, NativeStream(stream));
  }
  const bool vector_values =
      layout.block_in() % 8 == 0 && reinterpret_cast<uintptr_t>(values) % 16 == 0;
  const bool vector_dense = HasAlignedRows(args.dense);
  const auto grid = static_cast<unsigned>(layout.out());
  const cudaStream_t native = NativeStream(stream);
  WithIndex(prepared, [&](auto index) {
    using Column = std::remove_cvref_t<decltype(*index.columns)>;
    const auto launch = [&](auto kernel) {
      kernel<<<grid, kThreads, 0, native>>>(index, values, dense);
    };
    if (vector_values) {
      vector_dense ? launch(ScatterKernel<Column, true, true>)
                   : launch(ScatterKernel<Column, true, false>);
    } else {
      vector_dense ? launch(ScatterKernel<Column, false, true>)
                   : launch(ScatterKernel<Column, false, false>);
    }
  });
  CUDA_CHECK(cudaGetLastError());
}

void CudaBackend::GatherStored(const GatherStoredArgs& args, Stream& stream) {
  const cudaStream_t native = NativeStream(stream);
  const bool wide_dense = args.dense.dtype() == DType::kF32;
  const bool wide_values = args.values.dtype() == DType::kF32;
  if (wide_dense) {
    wide_values ? GatherAny<float, float>(args, native) : GatherAny<float, bf16>(args, native);
  } else {
    wide_values ? GatherAny<bf16, float>(args, native) : GatherAny<bf16, bf16>(args, native);
  }
}

}  // namespace filigree

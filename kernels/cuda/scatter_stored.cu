// Stored values to dense weights, for every layout kind.
#include <vector>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/stored_entries.cuh"

namespace filigree {
namespace {

// Columns of the weight that are assembled in shared memory at a time, by a CTA or by a warp. On an
// H100 rows of 2,048 still fill an SM with warps.
constexpr int kCtaTileCols = 8192, kWarpTileCols = 2048;

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

template <int kRowThreads>
__device__ __forceinline__ void SynchronizeRow() {
  if constexpr (kRowThreads == 32) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}

// kRowThreads threads a row: each tile of the row is cleared in shared memory, its stored cells are
// laid into it, and it leaves in whole vectors; so every dense element is written exactly once.
// Tiles begin at multiples of 8; a block across two tiles takes part in both. Bytes: 2 a stored
// cell, its index, 2 a dense cell. Shared memory: tile_cols, a multiple of 8, for each row.
template <typename Column, StoredEntries kEntries, bool kVectorDense, int kRowThreads>
__global__ void __launch_bounds__(kStoredThreads)
    ScatterKernel(const __grid_constant__ StoredParts<Column, bf16, const bf16> parts,
                  int tile_cols) {
  extern __shared__ uint4 tiles[];
  constexpr int kVec = kEntryCells<kEntries>, kBatch = kEntryBatch<kEntries>;
  const auto& part = parts.part[blockIdx.y];
  const auto& index = part.index;
  const int64_t row = int64_t{blockIdx.x} * kCtaRows<kRowThreads> + threadIdx.x / kRowThreads;
  if (row >= index.out) return;  // with all that share the row
  const int thread = threadIdx.x % kRowThreads;
  bf16* tile = reinterpret_cast<bf16*>(tiles) + threadIdx.x / kRowThreads * tile_cols;
  const int64_t grid_row = kEntries == StoredEntries::kBlocks ? row : row / index.height;
  const uint32_t row_begin = index.row_offsets[grid_row], row_end = index.row_offsets[grid_row + 1];
  for (int64_t first = 0; first < index.in; first += tile_cols) {
    const int count = static_cast<int>(min(int64_t{tile_cols}, index.in - first));
    for (int i = thread; i < (count + 7) / 8; i += kRowThreads) {
      reinterpret_cast<uint4*>(tile)[i] = make_uint4(0, 0, 0, 0);
    }
    SynchronizeRow<kRowThreads>();
    // A search is a chain of loads: none for what the row's ends are.
    const uint32_t begin =
        first == 0 ? row_begin : LowerBound(index.columns, row_begin, row_end, first / index.width);
    const uint32_t end = first + count >= index.in
                             ? row_end
                             : LowerBound(index.columns, begin, row_end,
                                          (first + count + index.width - 1) / index.width);
    const auto lay = [&](const int64_t(&columns)[kBatch], const int64_t(&slots)[kBatch],
                         int entries) {
      Bf16Pack<kVec> packs[kBatch];
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (b < entries) packs[b] = Load<kVec>(part.values + slots[b]);
      }
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (b >= entries) continue;
        const int64_t at = columns[b] - first;
        // A vector reaches at most to the next multiple of 8, which the tile has room for.
        if (at >= 0 && at < count) *reinterpret_cast<Bf16Pack<kVec>*>(tile + at) = packs[b];
      }
    };
    ForEntries<kEntries, kRowThreads>(index, row, begin, end, thread, lay);
    SynchronizeRow<kRowThreads>();
    bf16* to = part.dense.row(row) + first;
    const int vectors = kVectorDense ? count / 8 : 0;
    for (int i = thread; i < vectors; i += kRowThreads) {
      reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(tile)[i];
    }
    for (int i = 8 * vectors + thread; i < count; i += kRowThreads) to[i] = tile[i];
    SynchronizeRow<kRowThreads>();  // before the next tile is cleared
  }
}

// Adds the stored cells to a dense weight in place, kRowThreads threads a row. Bytes: 2 a stored
// cell and its index, and two sectors of 32 for each that holds one; of a weight that a product has
// just written, most are hits in the L2.
template <typename Column, StoredEntries kEntries, int kRowThreads>
__global__ void __launch_bounds__(kStoredThreads)
    AddKernel(const __grid_constant__ StoredParts<Column, bf16, const bf16> parts) {
  constexpr int kVec = kEntryCells<kEntries>, kBatch = kEntryBatch<kEntries>;
  const auto& part = parts.part[blockIdx.y];
  const auto& index = part.index;
  const int64_t row = int64_t{blockIdx.x} * kCtaRows<kRowThreads> + threadIdx.x / kRowThreads;
  if (row >= index.out) return;
  const int64_t grid_row = kEntries == StoredEntries::kBlocks ? row : row / index.height;
  bf16* dense = part.dense.row(row);
  const auto add = [&](const int64_t(&columns)[kBatch], const int64_t(&slots)[kBatch], int count) {
    float sum[kBatch][kVec];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (b >= count || columns[b] >= index.in) continue;
      float value[kVec];
      LoadValues(part.values + slots[b], value);
      LoadValues(dense + columns[b], sum[b]);
#pragma unroll
      for (int i = 0; i < kVec; ++i) sum[b][i] += value[i];
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (b < count && columns[b] < index.in) StoreValues(dense + columns[b], sum[b]);
    }
  };
  ForEntries<kEntries, kRowThreads>(index, row, index.row_offsets[grid_row],
                                    index.row_offsets[grid_row + 1], threadIdx.x % kRowThreads,
                                    add);
}

using ScatterParts = std::span<const ScatterStoredArgs>;

template <typename Measure>
int64_t Most(ScatterParts parts, const Measure& measure) {
  int64_t most = 0;
  for (const ScatterStoredArgs& part : parts) {
    most = std::max(most, int64_t{measure(part.weight->layout())});
  }
  return most;
}

void Scatter(ScatterParts parts, const StoredForm& form, cudaStream_t stream) {
  const int64_t rows = Most(parts, [](const SparseLayout& layout) { return layout.out(); });
  const int64_t cols = Most(parts, [](const SparseLayout& layout) { return layout.in(); });
  WithStoredForm(form, [&](auto column, auto entries) {
    using Column = decltype(column);
    const auto device_parts = DeviceParts<Column, bf16, const bf16>(parts);
    WithRowThreads(cols <= kWarpTileCols, [&](auto row_threads) {
      constexpr StoredEntries kEntries = decltype(entries)::value;
      constexpr int kRowThreads = decltype(row_threads)::value;
      const auto tile_cols = static_cast<int>(AlignUp(std::min<int64_t>(cols, kCtaTileCols), 8));
      const size_t shared_bytes = sizeof(bf16) * kCtaRows<kRowThreads> * tile_cols;
      const auto launch = [&](auto kernel) {
        kernel<<<StoredGrid(rows, kRowThreads, parts.size()), kStoredThreads, shared_bytes,
                 stream>>>(device_parts, tile_cols);
      };
      form.aligned_rows ? launch(ScatterKernel<Column, kEntries, true, kRowThreads>)
                        : launch(ScatterKernel<Column, kEntries, false, kRowThreads>);
    });
  });
  CUDA_CHECK(cudaGetLastError());
}

// Rows of more entries are a CTA's.
constexpr int kWarpRowEntries = 512;

void AddStored(ScatterParts parts, const StoredForm& form, cudaStream_t stream) {
  const int64_t rows = Most(parts, [](const SparseLayout& layout) { return layout.out(); });
  WithStoredForm(form, [&](auto column, auto entries) {
    using Column = decltype(column);
    const auto device_parts = DeviceParts<Column, bf16, const bf16>(parts);
    WithRowThreads(RowEntries(parts, form.entries) <= kWarpRowEntries, [&](auto row_threads) {
      constexpr int kRowThreads = decltype(row_threads)::value;
      AddKernel<Column, decltype(entries)::value, kRowThreads>
          <<<StoredGrid(rows, kRowThreads, parts.size()), kStoredThreads, 0, stream>>>(
              device_parts);
    });
  });
  CUDA_CHECK(cudaGetLastError());
}

StoredForm FormOf(const ScatterStoredArgs& part) {
  const bool vectors = reinterpret_cast<uintptr_t>(part.values.data()) % 16 == 0 &&
                       (!part.accumulate || TakesVectors(part.dense));
  return FormOfWeight(part.weight, vectors, HasAlignedRows(part.dense), part.accumulate);
}

}  // namespace

void CudaBackend::ScatterGroup(ScatterParts parts, Stream& stream) {
  std::vector<ScatterStoredArgs> sparse;
  for (const ScatterStoredArgs& part : parts) {
    const SparseLayout& layout = part.weight->layout();
    if (layout.logical_count() == 0) continue;
    if (layout.kind() != LayoutKind::kDense) {
      if (layout.stored_count() > 0 || !part.accumulate) sparse.push_back(part);
      continue;
    }
    const ConstTensorView matrix =
        part.values.Reshape({layout.out(), layout.row_pitch()}).Cols(0, layout.in());
    if (part.accumulate) {
      Add({.a = part.dense, .b = matrix, .out = part.dense}, stream);
    } else {
      device_.CopyAsync(part.dense, matrix, stream);
    }
  }
  ForEachLaunch(
      ScatterParts(sparse), [](const auto& part) { return FormOf(part); },
      [&](ScatterParts run, const StoredForm& form) {
        (form.accumulate ? AddStored : Scatter)(run, form, NativeStream(stream));
      });
}

}  // namespace filigree

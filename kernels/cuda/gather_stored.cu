// The stored cells of dense weights, for every layout kind.
#include <vector>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/stored_entries.cuh"

namespace filigree {
namespace {

// kRowThreads threads a padded row. Reads of the dense row are as dense as the stored cells are: of
// one that a product has just written, most are hits in the L2. Values are written in order. Edge
// padding receives zero, or keeps what it has when accumulating.
template <typename Column, typename Dense, typename Value, StoredEntries kEntries, int kRowThreads>
__global__ void __launch_bounds__(kStoredThreads)
    GatherKernel(const __grid_constant__ StoredParts<Column, const Dense, Value> parts,
                 bool accumulate) {
  constexpr int kVec = kEntryCells<kEntries>, kBatch = kEntryBatch<kEntries>;
  const auto& part = parts.part[blockIdx.y];
  const auto& index = part.index;
  const int64_t row = int64_t{blockIdx.x} * kCtaRows<kRowThreads> + threadIdx.x / kRowThreads;
  const int64_t grid_row = kEntries == StoredEntries::kBlocks ? row : row / index.height;
  if (grid_row * index.height >= index.out) return;
  const Dense* dense = part.dense.row(row);
  const auto gather = [&](const int64_t(&columns)[kBatch], const int64_t(&slots)[kBatch],
                          int count) {
    float sum[kBatch][kVec] = {};
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (b >= count) continue;
      // Where vectors are used the weight's width is a multiple of them: a vector is inside or
      // outside.
      if (row < index.out && columns[b] < index.in) LoadValues(dense + columns[b], sum[b]);
      if (accumulate) {
        float old[kVec];
        LoadValues(part.values + slots[b], old);
#pragma unroll
        for (int i = 0; i < kVec; ++i) sum[b][i] += old[i];
      }
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (b < count) StoreValues(part.values + slots[b], sum[b]);
    }
  };
  ForEntries<kEntries, kRowThreads>(index, row, index.row_offsets[grid_row],
                                    index.row_offsets[grid_row + 1], threadIdx.x % kRowThreads,
                                    gather);
}

// A dense layout's gather in place of a table: one block a row, padding included.
template <typename Dense, typename Value>
__global__ void __launch_bounds__(kStoredThreads)
    GatherDenseKernel(Rows<const Dense> dense, int64_t cols, Rows<Value> values, bool accumulate) {
  const int64_t row = blockIdx.x;
  for (int64_t col = threadIdx.x; col < values.stride; col += kStoredThreads) {
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

using GatherParts = std::span<const GatherStoredArgs>;

// Rows of more entries are a CTA's.
constexpr int kWarpRowEntries = 512;

template <typename Dense, typename Value>
void Gather(GatherParts parts, const StoredForm& form, cudaStream_t stream) {
  int64_t rows = 0;
  for (const GatherStoredArgs& part : parts) {
    const SparseLayout& layout = part.weight->layout();
    rows = std::max<int64_t>(rows, layout.grid_rows() * layout.block_out());
  }
  WithStoredForm(form, [&](auto column, auto entries) {
    using Column = decltype(column);
    const auto device_parts = DeviceParts<Column, const Dense, Value>(parts);
    WithRowThreads(RowEntries(parts, form.entries) <= kWarpRowEntries, [&](auto row_threads) {
      constexpr int kRowThreads = decltype(row_threads)::value;
      GatherKernel<Column, Dense, Value, decltype(entries)::value, kRowThreads>
          <<<StoredGrid(rows, kRowThreads, parts.size()), kStoredThreads, 0, stream>>>(
              device_parts, form.accumulate);
    });
  });
  CUDA_CHECK(cudaGetLastError());
}

template <typename Dense, typename Value>
void GatherDense(const GatherStoredArgs& part, cudaStream_t stream) {
  const SparseLayout& layout = part.weight->layout();
  const TensorView matrix =
      part.values.Reshape({layout.out(), layout.row_pitch()}).Cols(0, layout.in());
  GatherDenseKernel<<<static_cast<unsigned>(layout.out()), kStoredThreads, 0, stream>>>(
      AsRows<Dense>(part.dense, layout.out(), layout.in(), "dense"), layout.in(),
      AsRows<Value>(matrix, layout.out(), layout.in(), "values"), part.accumulate);
  CUDA_CHECK(cudaGetLastError());
}

// Calls fn with the parts' dtypes, as types.
template <typename Fn>
void WithDTypes(const GatherStoredArgs& part, const Fn& fn) {
  const auto with_values = [&](auto dense) {
    part.values.dtype() == DType::kF32 ? fn(dense, float{}) : fn(dense, bf16{});
  };
  part.dense.dtype() == DType::kF32 ? with_values(float{}) : with_values(bf16{});
}

StoredForm FormOf(const GatherStoredArgs& part) {
  const bool vectors =
      reinterpret_cast<uintptr_t>(part.values.data()) % 16 == 0 && TakesVectors(part.dense);
  return FormOfWeight(part.weight, vectors, /*aligned_rows=*/false, part.accumulate);
}

}  // namespace

// Parts have the dtypes of the first.
void CudaBackend::GatherGroup(GatherParts parts, Stream& stream) {
  std::vector<GatherStoredArgs> sparse;
  for (const GatherStoredArgs& part : parts) {
    const SparseLayout& layout = part.weight->layout();
    if (layout.stored_count() == 0) continue;
    if (layout.kind() != LayoutKind::kDense) {
      sparse.push_back(part);
      continue;
    }
    WithDTypes(part, [&](auto dense, auto value) {
      GatherDense<decltype(dense), decltype(value)>(part, NativeStream(stream));
    });
  }
  ForEachLaunch(
      GatherParts(sparse), [](const auto& part) { return FormOf(part); },
      [&](GatherParts run, const StoredForm& form) {
        WithDTypes(run.front(), [&](auto dense, auto value) {
          Gather<decltype(dense), decltype(value)>(run, form, NativeStream(stream));
        });
      });
}

}  // namespace filigree

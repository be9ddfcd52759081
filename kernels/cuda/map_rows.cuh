// Element-wise kernels: an operation says what it loads and what it does with it, MapRows the rest.
//
// An operation is a struct of pointers with
//   template <int kVec> struct Inputs;                      raw packs
//   template <int kVec> Inputs<kVec> Load(row, col) const;  only loads
//   template <int kVec> void Apply(row, col, const Inputs<kVec>&) const;  computes and stores
// All loads of a thread come before its first store, so that they are in flight together and an
// output may be the same view as an input.
//
// Grid: ceil(packs / (256 * kMapPacks)) blocks of 256 threads; a thread takes kMapPacks packs, 256
// apart. Bytes: what Load and Apply touch, once.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/base/math.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/vectors.cuh"

namespace filigree {

constexpr int kMapThreads = 256;
constexpr int kMapPacks = 2;

// `packs` = rows * packs_per_row; Index is 32 bits wide where that holds it: it is divided.
template <int kVec, typename Index, typename Op>
__global__ void __launch_bounds__(kMapThreads)
    MapRowsKernel(Op op, Index packs, Index packs_per_row) {
  const Index first = static_cast<Index>(blockIdx.x) * (kMapThreads * kMapPacks) + threadIdx.x;
  typename Op::template Inputs<kVec> inputs[kMapPacks];
#pragma unroll
  for (int i = 0; i < kMapPacks; ++i) {
    const Index pack = first + i * kMapThreads;
    if (pack < packs) {
      inputs[i] =
          op.template Load<kVec>(pack / packs_per_row, int64_t{pack % packs_per_row} * kVec);
    }
  }
#pragma unroll
  for (int i = 0; i < kMapPacks; ++i) {
    const Index pack = first + i * kMapThreads;
    if (pack < packs) {
      op.template Apply<kVec>(pack / packs_per_row, int64_t{pack % packs_per_row} * kVec,
                              inputs[i]);
    }
  }
}

template <int kVec, typename Op>
void LaunchMapRows(const Op& op, int64_t rows, int64_t cols, cudaStream_t stream) {
  const int64_t packs_per_row = cols / kVec, packs = rows * packs_per_row;
  if (packs == 0) return;
  const int64_t blocks = CeilDiv(packs, kMapThreads * kMapPacks);
  CHECK_LT(blocks, int64_t{1} << 31);
  // Threads of the last block may count past `packs`, and still must not wrap.
  if (packs < (int64_t{1} << 31)) {
    MapRowsKernel<kVec, uint32_t><<<blocks, kMapThreads, 0, stream>>>(
        op, static_cast<uint32_t>(packs), static_cast<uint32_t>(packs_per_row));
  } else {
    MapRowsKernel<kVec, int64_t><<<blocks, kMapThreads, 0, stream>>>(op, packs, packs_per_row);
  }
  CUDA_CHECK(cudaGetLastError());
}

// Applies `op` to every element of [rows, cols] matrices, in packs of eight where `vectors` says
// that all of them allow it.
template <typename Op>
void MapRows(const Op& op, int64_t rows, int64_t cols, bool vectors, cudaStream_t stream) {
  if (vectors) {
    LaunchMapRows<8>(op, rows, cols, stream);
  } else {
    LaunchMapRows<1>(op, rows, cols, stream);
  }
}

}  // namespace filigree

// Tensor maps: how the copy engine sees a matrix in device memory.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace filigree {

// A row-major bf16 matrix seen as [cols / 64][rows][64], so that a box of 64 columns fills the
// 128-byte swizzle exactly. Box: box_rows x 64, in shared memory box_rows lines of 128 bytes.
// `data` and the row stride must be multiples of 16 bytes, `cols` of 64; rows beyond the end read
// as zeros. Encoding takes about a microsecond of host time; the map holds the address.
CUtensorMap EncodeChunkMap(const void* data, int64_t rows, int64_t cols, int64_t row_stride,
                           int box_rows);

// The same matrix as [rows][cols], for stores of boxes of box_rows x 64, 128-byte swizzled.
CUtensorMap EncodeStoreMap(void* data, int64_t rows, int64_t cols, int64_t row_stride,
                           int box_rows);

// A row-major matrix of bytes as [rows][cols]: loads and stores of boxes of box_rows x 64, 64-byte
// swizzled. `data` and the row stride must be multiples of 16 bytes.
CUtensorMap EncodeByteMap(const void* data, int64_t rows, int64_t cols, int64_t row_stride,
                          int box_rows);

}  // namespace filigree

// Index arithmetic of the mma.sync kernels: which lane addresses, holds or copies what. Plain C++,
// so that a host test can play the instructions through it without a GPU.
//
// Tiles lie in shared memory as rows of 16-byte chunks (8 bf16), the chunks of a row permuted so
// that eight rows of one chunk column, and the chunks of one row, fall into different banks.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FILIGREE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FILIGREE_HOST_DEVICE inline
#endif

namespace filigree::mma {

inline constexpr int kChunkElements = 8;
inline constexpr int kChunkBytes = 16;

// Bytes from the tile's start to chunk `chunk` of row `row`, rows of kChunks (a power of two).
template <int kChunks>
constexpr FILIGREE_HOST_DEVICE int TileOffset(int row, int chunk) {
  // Narrow rows share a 128-byte line: the permutation steps once a line.
  const int step = kChunks >= 8 ? row % 8 : row * kChunks / 8 % kChunks;
  return (row * kChunks + (chunk ^ step)) * kChunkBytes;
}

// The row and chunk whose address a lane passes to ldmatrix.x4 for 16 x 16 elements, relative to
// their first row and chunk. Its four 8x8 matrices land in registers 0 to 3.
struct RowChunk {
  int row, chunk;
};

// Matrices along the row first: (0, 0), (8, 0), (0, 8), (8, 8) as (row, element).
constexpr FILIGREE_HOST_DEVICE RowChunk RowsFirst(int lane) { return {lane % 16, lane / 16}; }
// Matrices along the chunk first: (0, 0), (0, 8), (8, 0), (8, 8).
constexpr FILIGREE_HOST_DEVICE RowChunk ChunksFirst(int lane) {
  return {lane / 16 * 8 + lane % 8, lane / 8 % 2};
}

// mma.m16n8k16 wants A's matrices in the order (m, k) = (0, 0), (8, 0), (0, 8), (8, 8), and of B
// two 8-wide halves of n: (k, n) = (0, 0), (8, 0), (0, 8), (8, 8). An operand is stored with rows
// along m or n (ldmatrix as it is) or with rows along k (ldmatrix.trans).
constexpr FILIGREE_HOST_DEVICE RowChunk AddressOfA(bool rows_along_k, int lane) {
  return rows_along_k ? ChunksFirst(lane) : RowsFirst(lane);
}
constexpr FILIGREE_HOST_DEVICE RowChunk AddressOfB(bool rows_along_k, int lane) {
  return rows_along_k ? RowsFirst(lane) : ChunksFirst(lane);
}

// Moves a lane's offset or address in an operand tile (rows of kChunks; a multiple of 128 bytes
// away from offset 0) by 16 * i elements along m or n and 16 * k along the reduction. Along a row
// that is two chunks, which the permutation turns into an exclusive or; down the rows it repeats
// every 16. Along a row it may move up to 64 elements, from a multiple of as many.
template <bool kRowsAlongK, int kChunks>
constexpr FILIGREE_HOST_DEVICE uint32_t MoveInTile(uint32_t offset, int i, int k) {
  const int along = kRowsAlongK ? i : k, down = kRowsAlongK ? k : i;
  return (offset ^ (along * 2 * kChunkBytes)) + down * 16 * kChunks * kChunkBytes;
}

// Accumulators of a 16 x 8 tile: register r of a lane is element (row, column); r = 0, 1 and 2, 3
// are neighbours in a row.
struct Cell {
  int row, column;
};
constexpr FILIGREE_HOST_DEVICE Cell AccumulatorCell(int lane, int r) {
  return {lane / 4 + r / 2 * 8, lane % 4 * 2 + r % 2};
}

// ---- Blocks: slices of 16, of which a side has a power of two ----

inline constexpr bool IsBlockSide(int side) {
  return side == 16 || side == 32 || side == 64 || side == 128;
}
inline constexpr int kSliceDepth = 16;

// log2 of the slices in a side of 16, 32, 64 or 128.
constexpr FILIGREE_HOST_DEVICE int SliceShift(int side) {
  return side == 16 ? 0 : side == 32 ? 1 : side == 64 ? 2 : 3;
}

// Slice `slice` of a list of blocks `depth` (16 to 128, 2^shift slices) deep: which entry of the
// list, and how deep inside its block.
struct SlicePosition {
  int entry, inside;
};
constexpr FILIGREE_HOST_DEVICE SlicePosition PositionOfSlice(int slice, int shift) {
  return {slice >> shift, (slice & ((1 << shift) - 1)) * kSliceDepth};
}

// ---- Weight gradient: blocks of one block row, taken in groups by one CTA ----

// The first group's index of a block row whose blocks begin at `begin`, for groups of 2^shift. Rows
// get indices enough for their blocks without a list: at most one too many each.
constexpr FILIGREE_HOST_DEVICE int FirstGroupOfRow(int row, int begin, int shift) {
  return (begin >> shift) + row;
}
// Group indices in all.
constexpr FILIGREE_HOST_DEVICE int GroupIndexCount(int rows, int blocks, int shift) {
  return FirstGroupOfRow(rows, blocks, shift);
}
// The block row of a group: the last row whose first group is not beyond it.
constexpr FILIGREE_HOST_DEVICE int RowOfGroup(const int* row_offsets, int rows, int group,
                                              int shift) {
  int low = 0, high = rows;  // first(low) <= group < first(high)
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (FirstGroupOfRow(middle, row_offsets[middle], shift) <= group ? low : high) = middle;
  }
  return low;
}

}  // namespace filigree::mma

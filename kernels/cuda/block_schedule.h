// Work lists for the block-sparse products: which CTA computes what, in which order.
//
// Built on the host from plain BSR arrays whenever a topology or a token count changes, and
// uploaded as they are; the kernels only walk them. Static lists rather than an atomic counter: the
// order of every sum is then a function of (layout, tokens, tiling), so results are bit-for-bit
// repeatable. Pure host C++; the structs are read by the device, so their layout is fixed.
//
// A weight is [out, in] = [block_row_count * rows, block_col_count * cols]; its nonzero blocks are
// stored each row-major inside, in block-row-major order or wherever `value_begin` says: several
// weights that share their input are one pattern, their block rows one under the other. A block is
// 64 or 128 elements in either direction; a shape that is no multiple of the block must be padded
// by the caller.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace filigree {

// Elements of one reduction step and of one operand chunk: 128 bytes of bf16, the swizzle width.
inline constexpr int kChunk = 64;

struct BlockShape {
  int rows = 128;  // outputs
  int cols = 128;  // inputs
  bool operator==(const BlockShape&) const = default;
};

// A view of a BSR pattern. The arrays belong to the caller.
struct BsrPattern {
  BlockShape block;
  int block_row_count = 0;
  int block_col_count = 0;
  std::span<const int> row_begin;  // block_row_count + 1 offsets into `col`
  std::span<const int> col;        // block column of every stored block, ascending within a row
  // Where each stored block's values begin, in elements and a multiple of block.cols and 64; empty:
  // one after the other.
  std::span<const int64_t> value_begin = {};

  int64_t out_features() const { return int64_t{block_row_count} * block.rows; }
  int64_t in_features() const { return int64_t{block_col_count} * block.cols; }
  int64_t block_count() const { return static_cast<int64_t>(col.size()); }
  int64_t stored_count() const { return block_count() * block.rows * block.cols; }
  int64_t ValueBegin(int64_t p) const {
    return value_begin.empty() ? p * block.rows * block.cols : value_begin[p];
  }
  // Elements from the first value to the end of the last block.
  int64_t value_extent() const {
    return block_count() == 0 ? 0
                              : ValueBegin(block_count() - 1) + int64_t{block.rows} * block.cols;
  }
};

// ---- Forward product and input gradient ----

// One 64-deep reduction step: an operand slice of one block times 64 columns of the input; or a
// slice of a thin factor beside the weight times 64 columns of what lies between the factors
// ("inner").
struct SpmmStep {
  int32_t weight_row;  // first row of the slice among the stored rows of block.cols values, or of
                       // the factors' rows
  // Of the slice's 64 columns, the first (transposed: of all its columns): within the block, or the
  // factor.
  int16_t weight_chunk;
  int16_t input_chunk;  // which 64 columns of the input; ~c: 64 columns c of inner, and a factor

  static int16_t InnerChunk(int64_t chunk) { return static_cast<int16_t>(~chunk); }
};

// The factors beside the weight: B [out_count, rank] of output features out_begin .. (forward), or
// A [rank, in_features] (transposed; the sum takes every part's). One operand holds all of them, as
// rows of `rank` (B) or `in_features` (A) values.
struct FactorPart {
  int32_t out_begin = 0, out_count = 0;  // multiples of block.rows
  int32_t row_begin = 0;                 // the factor's first row in the operand
  int32_t inner_begin = 0;               // its first column of inner, a multiple of 64
  int32_t rank = 0;                      // a multiple of 64
  bool operator==(const FactorPart&) const = default;
};

// One output tile: all tokens from token_begin that a worker covers, one block's worth of features.
struct SpmmTile {
  int32_t token_begin;
  int32_t feature_begin;
  int32_t step_begin;
  int32_t step_count;  // 0: an empty row, the tile is written as zeros
};

struct SpmmSchedule {
  std::vector<SpmmStep> steps;
  std::vector<SpmmTile> tiles;        // grouped by worker
  std::vector<int32_t> worker_begin;  // workers + 1 offsets into `tiles`
};

struct SpmmTiling {
  int workers = 132;      // clusters that run at once
  int tile_tokens = 256;  // tokens that one worker covers per tile
  int token_group = 16;   // tiles along the tokens that are finished before the next group starts
  // The output's features are two halves, and a worker makes a tile of the first and then that of
  // the second at the same place: every worker's tiles are such pairs.
  bool pairs = false;
  bool operator==(const SpmmTiling&) const = default;
};

// Tiles are dealt in order of (token group, longest row first, token) to whichever worker is free
// first: neighbours work on the same block row, the input panel of a group stays in L2, and the
// shortest tiles come last. Pairs are dealt as one. A tile's steps with factors come before those
// with blocks.
SpmmSchedule BuildSpmmSchedule(const BsrPattern& pattern, bool transposed, int64_t tokens,
                               const SpmmTiling& tiling, std::span<const FactorPart> factors = {});

// ---- Weight gradient ----

// Up to four (A slices of 128) or eight chunks (slices of 64) that share an A slice, computed by
// one CTA. With slices of 64, slots 0-3 belong to one warpgroup and 4-7 to the other.
//
// The gradient's tile is A^T B over the tokens, where A is a slice of the output gradient, one
// block row wide, and B any chunks of 64 columns of the input (by rows), or the other way round (by
// columns): the wider side of a block is A's.
struct SddmmUnit {
  int32_t by_rows;            // 1 or 0
  int32_t a_chunk;            // first 64 columns of the A slice
  int32_t chunk_count[2];     // slots in use in each group of four
  int32_t b_chunk[8];         // which 64 columns of B
  int32_t gradient_chunk[8];  // offset of the chunk's first element in the gradient, in 64s
  // Which of the four 16-deep slices of every step each warpgroup adds to the sums of A's columns;
  // a power of two of them, or none.
  int32_t sum_first[2];
  int32_t sum_count[2];
  // Partial sums, to be added in this order: by the segment that writes the gradient, after its
  // own, or, where there is none, by a second kernel (SddmmSchedule::reductions).
  int32_t slot_begin;
  int32_t slot_count;
};

// A range of tokens of one unit, summed by one worker in one go.
struct SddmmSegment {
  int32_t unit;
  int32_t token_begin;
  int32_t step_count;  // steps of 64 tokens
  int32_t target;      // a partial slot, or kTargetGradient
};
inline constexpr int32_t kTargetGradient = -1;  // overwrite or accumulate, as the call says

// Partial sums of one schedule at most; they share only as many units as are left over.
inline constexpr int kSddmmMaxSlots = 2048;

struct SddmmSchedule {
  std::vector<SddmmUnit> units;
  std::vector<SddmmSegment> segments;  // grouped by worker
  std::vector<int32_t> worker_begin;   // workers + 1 offsets into `segments`
  std::vector<int32_t> reductions;  // the units that no segment writes: all divided ones, or none
  int slot_count = 0;
  int worker_steps = 0;  // of the worker with most
  bool paced = false;    // workers wait for each other in their sweep over the tokens
  // With `column_sums`: of each block row the segments (indices into `segments`) whose sums of its
  // columns, added in this order, are those over all tokens.
  std::vector<int32_t> sum_begin;  // block_row_count + 1 offsets into `sum_segments`, or empty
  std::vector<int32_t> sum_segments;
};

// The kernel's scratch. A partial sum holds the accumulators of a CTA: 256 threads x 128 fp32.
inline constexpr int64_t kSddmmPartialFloats = 256 * 128;
inline int64_t SddmmPartialBytes(int slot_count) { return slot_count * kSddmmPartialFloats * 4; }
// With sums of A's columns beside it a part of them for each segment: 64 columns of each warpgroup.
inline constexpr int kSddmmSumFloats = 2 * 64;
inline int64_t SddmmSumBytes(int64_t segment_count) { return segment_count * kSddmmSumFloats * 4; }

// Whether reading both operands once takes longer than the products, by 200 operations a byte: 90 %
// of 128-blocks, for instance.
inline bool IsSddmmMemoryBound(int64_t stored_count, int64_t out_features, int64_t in_features) {
  return stored_count < 200 * (out_features + in_features);
}

// All workers sweep the tokens in the same direction at about the same pace, so that both operands
// are read from device memory about once. Whole units come first, as many to every worker; those
// left over are divided over tokens, so that all workers end together, where that promises to pay.
// Of a unit in two parts the worker with the higher number writes the gradient, and waits for the
// other's partial sum: workers that start in order and wait for lower numbers alone cannot wait for
// each other. Where a unit has more parts, a second kernel adds those of all.
//
// With `column_sums`, and blocks at least as high as they are wide, all units are by rows and share
// the sums of the output gradient over the tokens; a block row without blocks has a unit of sums
// alone.
struct SddmmForm {
  bool column_sums = false;
  bool operator==(const SddmmForm&) const = default;
};
SddmmSchedule BuildSddmmSchedule(const BsrPattern& pattern, int64_t tokens, int workers,
                                 const SddmmForm& form = {});

}  // namespace filigree

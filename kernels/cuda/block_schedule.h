// Work lists for the block-sparse products: which CTA computes what, in which order.
//
// Built on the host from plain BSR arrays whenever a topology or a token count changes, and uploaded
// as they are; the kernels only walk them. Static lists rather than an atomic counter: the order of
// every sum is then a function of (layout, tokens, tiling), so results are bit-for-bit repeatable.
// Pure host C++; the structs are read by the device, so their layout is fixed.
//
// A weight is [out, in] = [block_row_count * rows, block_col_count * cols], its nonzero blocks stored
// one after the other in block-row-major order, each row-major inside. A block is 64 or 128 elements
// in either direction; a shape that is no multiple of the block must be padded by the caller.
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

  int64_t out_features() const { return int64_t{block_row_count} * block.rows; }
  int64_t in_features() const { return int64_t{block_col_count} * block.cols; }
  int64_t block_count() const { return static_cast<int64_t>(col.size()); }
};

// ---- Forward product and input gradient ----

// One 64-deep reduction step: an operand slice of one block times 64 columns of the input.
struct SpmmStep {
  int32_t weight_row;    // first row of the slice among the block_count * rows stored rows
  int16_t weight_chunk;  // which 64 columns of the block (forward; the transposed product reads all)
  int16_t input_chunk;   // which 64 columns of the input
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
  std::vector<SpmmTile> tiles;         // grouped by worker
  std::vector<int32_t> worker_begin;  // workers + 1 offsets into `tiles`
};

struct SpmmTiling {
  int workers = 132;      // clusters that run at once
  int tile_tokens = 256;  // tokens that one worker covers per tile
  int token_group = 16;   // tiles along the tokens that are finished before the next group starts
};

// Tiles are dealt in order of (token group, longest row first, token) to whichever worker is free
// first: neighbours work on the same block row, the input panel of a group stays in L2, and the
// shortest tiles come last.
SpmmSchedule BuildSpmmSchedule(const BsrPattern& pattern, bool transposed, int64_t tokens,
                               const SpmmTiling& tiling);

// ---- Weight gradient ----

// Two banks of four chunks of 64 input columns, all of one block row, computed by one worker. With
// block rows of 128, a bank belongs to a CTA of the worker's cluster (one bank without a cluster);
// with block rows of 64, to a warpgroup of the CTA.
struct SddmmUnit {
  int32_t row_chunk;          // first 64 columns of the output gradient
  int32_t chunk_count[2];     // slots in use in each bank
  int32_t input_chunk[8];     // which 64 columns of the input, slot 4 * bank + i
  int32_t gradient_chunk[8];  // offset of the chunk in the gradient, in 64s
};

struct SddmmTiling {
  int workers = 132;  // clusters that run at once
  int cluster = 1;    // CTAs that share the output gradient's slice by multicast (2: rows of 128 only)
};

// A range of tokens of one unit, summed by one worker in one go.
struct SddmmSegment {
  int32_t unit;
  int32_t token_begin;
  int32_t step_count;  // steps of 64 tokens
  int32_t target;      // a partial slot, or one of those below
};
inline constexpr int32_t kTargetGradient = -1;     // overwrite or accumulate, as the call says
inline constexpr int32_t kTargetGradientAdd = -2;  // on top of an earlier segment of this worker
inline constexpr int32_t kTargetCarry = -3;        // keep the sums for the worker's next segment

// Partial sums `slot_begin ..` of a unit, to be added to its gradient in this order.
struct SddmmReduction {
  int32_t unit;
  int32_t slot_begin;
  int32_t slot_count;
  int32_t reserved = 0;
};

struct SddmmSchedule {
  std::vector<SddmmUnit> units;
  std::vector<SddmmSegment> segments;  // grouped by worker
  std::vector<int32_t> worker_begin;   // workers + 1 offsets into `segments`
  std::vector<SddmmReduction> reductions;
  int slot_count = 0;
};

// All workers sweep the tokens in the same direction at the same pace, so that both operands are read
// from device memory about once. Fewer units than workers: the tokens of a unit are divided, and long
// ranges give pieces to idle workers. More: every worker owns whole units, and the ones left over are
// cut into slices. Either way a worker takes a piece up when its own sweep reaches those tokens.
SddmmSchedule BuildSddmmSchedule(const BsrPattern& pattern, int64_t tokens,
                                 const SddmmTiling& tiling);

}  // namespace filigree

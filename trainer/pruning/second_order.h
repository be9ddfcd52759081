// What the rest of a matrix does when it loses input columns: the local second-order update.
//
// With the layer's inputs X [tokens, in] and H = X^T X + damping, the columns that stay, R, take
// over what the columns that go, Q, contributed, in the least-squares sense over these inputs:
//   W_R += W_Q H_QR H_RR^-1,
// which is the optimal brain surgeon's dW = -W_Q ([H^-1]_QQ)^-1 [H^-1]_Q: of all of Q at once.
// It is done within a block of columns around Q, so that H stays small. Columns removed before
// have zero inputs: they get nothing.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace filigree {

// H_QR H_RR^-1 of one block.
struct ColumnUpdate {
  std::vector<int64_t> rest;    // R by their offsets in the block, ascending; none: nothing to do
  std::vector<double> factors;  // [gone, rest]
};

// `gram` [block, block] is X^T X of a block's columns, of which `gone` (by their offset in it,
// ascending) leave. `damping` is relative to the mean of the diagonal over columns with inputs: what
// was removed before counts for nothing, stored or not. Nothing where the block had no inputs at
// all, or nothing stays. A weight takes it by Backend's AddColumns.
ColumnUpdate SolveColumns(std::span<const float> gram, int64_t block,
                          std::span<const int64_t> gone, double damping);

}  // namespace filigree

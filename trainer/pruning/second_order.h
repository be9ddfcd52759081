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

// `weight` [rows, pitch] in place: columns [begin, begin + block) of it, of which `gone` (by their
// offset in the block, ascending) leave; `gram` [block, block] is X^T X of those columns. `damping`
// is relative to the mean of the diagonal over columns with inputs: what was removed before counts
// for nothing, stored or not. The columns that leave are not touched. False: the block had no inputs
// at all, or nothing stays; nothing was done.
bool CompensateColumns(std::span<float> weight, int64_t rows, int64_t pitch, int64_t begin,
                       std::span<const float> gram, int64_t block, std::span<const int64_t> gone,
                       double damping);

}  // namespace filigree

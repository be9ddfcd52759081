// LOST's start of W = scale B A + S (arXiv 2508.02668): a full weight is cut by its singular
// values.
//
// W0 [out, in] is the weight a dense run would start from, N(0, init_std) from the run's seed, with
// W0 = U Sigma V^T. The r largest singular values make the factors, B = U_r Sigma_r^1/2 and
// A = Sigma_r^1/2 V_r^T (each over sqrt(scale), so that scale B A is their part of W0). What they
// leave, C = W0 - U_r Sigma_r V_r^T, starts S: whole input channels, the columns of C with the
// largest norms, as many as the sparsity leaves. Written from the paper's description; its further
// parts (a nonlinearity between the factors, a weight between the two terms) are not taken.
//
// Cost: the eigenvectors of a symmetric matrix of the smaller side, O(min(out, in)^3) a weight, on
// the host, when a layout is drawn and again when values start.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/linear/linear.h"

namespace filigree {

struct LostStart {
  std::vector<float> a;           // [rank, in]
  std::vector<float> b;           // [out, rank]
  std::vector<float> rest;        // C [out, in]
  std::vector<int32_t> channels;  // of S, ascending
};

LostStart ComputeLostStart(const LinearSpec& linear, const SparsitySpec& sparsity, uint64_t seed);

// Columns that S stores.
int64_t LostChannels(const LinearSpec& linear, const SparsitySpec& sparsity);
// The layout of S: those columns, of every row.
SparseLayout DrawLostLayout(const LinearSpec& linear, const SparsitySpec& sparsity, uint64_t seed);
// Gives a linear's parameters NAME.weight, NAME.low_rank_a and NAME.low_rank_b these initial
// values.
void StartAsLost(const LinearSpec& linear, const SparsitySpec& sparsity,
                 std::vector<Parameter>* parameters);

}  // namespace filigree

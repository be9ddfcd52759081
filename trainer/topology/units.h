// A layout as a set of units: single weights of an unstructured layout, blocks of a blocked one.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/sparse/layout.h"
#include "trainer/topology/criterion.h"

namespace filigree {

// Units of the whole (padded) weight, in row-major order of cells or of blocks.
int64_t UnitCount(const SparseLayout& layout);
int64_t StoredUnits(const SparseLayout& layout);
// 1 for each unit that is stored.
std::vector<uint8_t> LiveUnits(const SparseLayout& layout);
// A layout of the same kind and shape that stores the units marked.
SparseLayout WithUnits(const SparseLayout& like, const std::vector<uint8_t>& live);

// Scores of the stored units (others are 0): the criterion summed over the cells of each.
std::vector<float> StoredScores(const Criterion& criterion, const ScoreInputs& inputs);
// |g| summed over the cells of each unit of the weight, stored or not: what RigL grows by.
std::vector<float> GradientScores(const SparseLayout& layout, std::span<const float> dense_grads);

}  // namespace filigree

// Saliency: what removing a unit is expected to cost, as a table of criteria.
//
// A unit is scaled by a gate z, 1 in the model, 0 once it is removed. Per batch, with the gradient g
// of the loss (a mean over N tokens), s = sum of g w over the gate's cells is dL/dz, and to second
// order removal changes the loss by
//     L(0) - L(1) = -E[s] + 1/2 h,   h = d2L/dz2.
// The Fisher information estimates h: the mean over tokens of the squared derivative, which for a
// batch of N independent tokens is N E[s^2] (of the gate as a whole, cross terms between the cells
// included). EfficientLLM's diagonal form keeps the squares of single cells, N E[sum (g w)^2].
// Expectations are moving averages over batches (`smoothing`), and a batch whose squares add up to
// more than `outlier_factor` times the usual is scaled down to that.
//
// Scores of different kinds of unit are compared as expected loss per parameter removed: the unit
// is the same for all, so that the cheapest goes first whatever its kind.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"
#include "trainer/pruning/groups.h"
#include "trainer/pruning/progress.h"

namespace filigree {

// Of one unit.
struct SaliencySums {
  double gate = 0;          // E[s]
  double gate_squares = 0;  // E[s^2]
  double cell_squares = 0;  // E[sum of (g w)^2 over the gate's cells]
  double input_squares = 0;  // E[sum over tokens of x^2 of what its weights read], for Wanda
};
inline constexpr int kSmoothed = sizeof(SaliencySums) / sizeof(double);

// One batch's sums of all units.
struct SaliencyBatch {
  std::vector<SaliencySums> units;
  double tokens = 0;  // that counted
};

struct SaliencyCriterion {
  std::string_view name;
  std::string_view summary;
  bool needs_weights = false;  // `w_squares`
  bool needs_inputs = false;   // SaliencySums::input_squares
  // `w_squares`: sum of w^2 over all of the unit's cells, 0 where not needed; `tokens` of a batch.
  double (*score)(const SaliencySums& sums, double w_squares, double tokens);
};
std::span<const SaliencyCriterion> SaliencyCriteria();
const SaliencyCriterion* FindSaliencyCriterion(std::string_view name);

// Adds a batch to the moving averages.
void Smooth(const SaliencyBatch& batch, double smoothing, double outlier_factor,
            PruningProgress* progress);

// Scores of all units per parameter that goes with one, counted among units that stay, so that the
// next to go is the same whether or not those before it have been compacted away: lowest first.
std::vector<double> SaliencyScores(const SaliencyCriterion& criterion, const UnitTable& table,
                                   const PruningProgress& progress,
                                   std::span<const double> w_squares, double tokens);

}  // namespace filigree

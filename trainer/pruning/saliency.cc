#include "trainer/pruning/saliency.h"

#include <algorithm>
#include <cmath>

#include "kernels/base/check.h"

namespace filigree {
namespace {

constexpr SaliencyCriterion kCriteria[] = {
    {.name = "taylor_second",
     .summary = "-E[s] + N E[s^2] / 2: Fisher information of the whole gate",
     .score = [](const SaliencySums& sums, double,
                 double tokens) { return 0.5 * tokens * sums.gate_squares - sums.gate; }},
    {.name = "taylor_diagonal",
     .summary = "|-E[s] + N E[sum (g w)^2] / 2|: EfficientLLM's diagonal Fisher",
     .score = [](const SaliencySums& sums, double,
                 double tokens) { return std::abs(0.5 * tokens * sums.cell_squares - sums.gate); }},
    {.name = "taylor_first",
     .summary = "|E[s]|",
     .score = [](const SaliencySums& sums, double, double) { return std::abs(sums.gate); }},
    {.name = "magnitude",
     .summary = "sum of w^2",
     .needs_weights = true,
     .score = [](const SaliencySums&, double w_squares, double) { return w_squares; }},
    {.name = "wanda",
     .summary = "norm of w times norm of the inputs",
     .needs_weights = true,
     .needs_inputs = true,
     .score = [](const SaliencySums& sums, double w_squares,
                 double) { return std::sqrt(w_squares * sums.input_squares); }},
};

// The size of a batch's saliency, to tell an outlier by.
double SizeOf(const SaliencyBatch& batch) {
  double size = 0;
  for (const SaliencySums& sums : batch.units) size += sums.gate_squares;
  return std::sqrt(size);
}

}  // namespace

std::span<const SaliencyCriterion> SaliencyCriteria() { return kCriteria; }

const SaliencyCriterion* FindSaliencyCriterion(std::string_view name) {
  for (const SaliencyCriterion& row : kCriteria) {
    if (row.name == name) return &row;
  }
  return nullptr;
}

void Smooth(const SaliencyBatch& batch, double smoothing, double outlier_factor,
            PruningProgress* progress) {
  CHECK_EQ(progress->smoothed.size(), batch.units.size() * kSmoothed);
  const double size = SizeOf(batch);
  if (!std::isfinite(size)) return;
  double scale = 1;
  if (progress->batches > 0 && size > outlier_factor * progress->level) {
    scale = outlier_factor * progress->level / size;
  }
  // The first batches weigh alike, so that the start is no more than one of them.
  const auto count = static_cast<double>(progress->batches);
  const double keep = std::min(smoothing, count / (count + 1));
  progress->level = keep * progress->level + (1 - keep) * scale * size;
  ++progress->batches;
  double* smoothed = progress->smoothed.data();
  for (const SaliencySums& sums : batch.units) {
    const double values[] = {scale * sums.gate, scale * scale * sums.gate_squares,
                             scale * scale * sums.cell_squares, sums.input_squares};
    for (const double value : values) {
      *smoothed = keep * *smoothed + (1 - keep) * value;
      ++smoothed;
    }
  }
}

std::vector<double> SaliencyScores(const SaliencyCriterion& criterion, const UnitTable& table,
                                   const PruningProgress& progress,
                                   std::span<const double> w_squares, double tokens) {
  std::vector<double> scores(static_cast<size_t>(table.unit_count()));
  const std::vector<int64_t> parameters_of =
      LiveParametersOfUnits(table, LiveCounts(table, progress.zero_at));
  for (size_t i = 0; i < table.sets().size(); ++i) {
    const UnitSet& set = table.sets()[i];
    const auto parameters = static_cast<double>(parameters_of[i]);
    for (int64_t unit = set.first; unit < set.first + set.count; ++unit) {
      const double* smoothed = progress.smoothed.data() + unit * kSmoothed;
      const SaliencySums sums = {.gate = smoothed[0],
                                 .gate_squares = smoothed[1],
                                 .cell_squares = smoothed[2],
                                 .input_squares = smoothed[3]};
      scores[static_cast<size_t>(unit)] =
          criterion.score(sums, w_squares[static_cast<size_t>(unit)], tokens) / parameters;
    }
  }
  return scores;
}

}  // namespace filigree

#include "trainer/topology/distribution.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "kernels/base/math.h"

namespace filigree {
namespace {

int64_t Rounded(double value) { return std::llround(value); }

int64_t TotalUnits(std::span<const WeightShape> weights) {
  int64_t total = 0;
  for (const WeightShape& weight : weights) total += weight.units;
  return total;
}

std::vector<int64_t> UniformCounts(std::span<const WeightShape> weights, double sparsity) {
  std::vector<int64_t> counts;
  for (const WeightShape& weight : weights) {
    counts.push_back(Rounded((1 - sparsity) * static_cast<double>(weight.units)));
  }
  return counts;
}

// Rounds real counts to integers of this sum: those of largest fraction go up, first come first.
std::vector<int64_t> RoundToSum(const std::vector<double>& wanted,
                                std::span<const WeightShape> weights, int64_t sum) {
  std::vector<int64_t> counts;
  for (double count : wanted) counts.push_back(static_cast<int64_t>(std::floor(count)));
  std::vector<size_t> order(wanted.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return wanted[a] - std::floor(wanted[a]) > wanted[b] - std::floor(wanted[b]);
  });
  int64_t missing = sum - std::accumulate(counts.begin(), counts.end(), int64_t{0});
  while (missing != 0) {  // a second round only where weights are full, or rounding overshot
    const int64_t before = missing;
    for (size_t i : order) {
      if (missing > 0 && counts[i] < weights[i].units) ++counts[i], --missing;
      if (missing < 0 && counts[i] > 0) --counts[i], ++missing;
    }
    if (missing == before) break;
  }
  return counts;
}

std::vector<int64_t> ErdosRenyiCounts(std::span<const WeightShape> weights, double sparsity) {
  const int64_t sum = Rounded((1 - sparsity) * static_cast<double>(TotalUnits(weights)));
  std::vector<bool> dense(weights.size(), false);
  std::vector<double> wanted(weights.size(), 0);
  for (bool again = true; again;) {
    again = false;
    double left = static_cast<double>(sum), raw = 0;
    for (size_t i = 0; i < weights.size(); ++i) {
      const WeightShape& w = weights[i];
      const auto units = static_cast<double>(w.units);
      wanted[i] = units * static_cast<double>(w.out + w.in) / static_cast<double>(w.out * w.in);
      if (dense[i]) {
        left -= units;
      } else {
        raw += wanted[i];
      }
    }
    const double factor = raw > 0 ? std::max(left, 0.0) / raw : 0;
    for (size_t i = 0; i < weights.size(); ++i) {
      const auto units = static_cast<double>(weights[i].units);
      wanted[i] = dense[i] ? units : wanted[i] * factor;
      if (wanted[i] > units) dense[i] = again = true;
    }
  }
  return RoundToSum(wanted, weights, sum);
}

}  // namespace

bool StoresBlocks(const SparsitySpec& spec) {
  const StoredUnits units = RowOf(spec).units;
  return units == StoredUnits::kBlocks ||
         (units == StoredUnits::kSparsePart && spec.sparse_part == SparsePart::kBlocks);
}

WeightShape ShapeOf(const LinearSpec& linear, const SparsitySpec& spec) {
  const bool blocked = StoresBlocks(spec);
  const int64_t height = blocked ? spec.block_out : 1, width = blocked ? spec.block_in : 1;
  return {linear.out, linear.in, CeilDiv(linear.out, height) * CeilDiv(linear.in, width)};
}

std::span<const Distribution> Distributions() {
  static constexpr std::array rows = {
      Distribution{"uniform", "the same fraction of each weight", &UniformCounts},
      Distribution{"er", "densities as (out + in) / (out in)", &ErdosRenyiCounts},
      Distribution{"erk", "the same: kernels of linear maps are 1 x 1", &ErdosRenyiCounts},
      Distribution{"global", "one threshold over all weights, with a floor", nullptr}};
  return rows;
}

const Distribution* FindDistribution(std::string_view name) {
  for (const Distribution& row : Distributions()) {
    if (row.name == name) return &row;
  }
  return nullptr;
}

std::vector<int64_t> GlobalFloors(std::span<const WeightShape> weights, const SparsitySpec& spec) {
  const auto total = static_cast<double>(TotalUnits(weights));
  std::vector<int64_t> floors;
  for (const WeightShape& weight : weights) {
    const int64_t own = Rounded(spec.min_density * static_cast<double>(weight.units));
    const int64_t floor = std::max({int64_t{1}, own, Rounded(spec.min_share * total)});
    floors.push_back(std::min(floor, weight.units));
  }
  return floors;
}

bool SharesAlike(const SparsitySpec& spec) {
  const Distribution* row = FindDistribution(spec.distribution);
  return !row || !row->counts || row->counts == &UniformCounts;
}

std::vector<int64_t> DrawnCounts(std::span<const WeightShape> weights, const SparsitySpec& spec,
                                 double sparsity) {
  return SharesAlike(spec) ? UniformCounts(weights, sparsity)
                           : FindDistribution(spec.distribution)->counts(weights, sparsity);
}

}  // namespace filigree

// A weight as one dense matrix, whatever it is stored as: W = scale * B A + the stored cells.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/base/status.h"
#include "trainer/parameter.h"

namespace filigree {

// The parameters that NAME.weight consists of, as indices; -1: not there. Of a parameter that is
// not a linear's weight, itself.
struct WeightParts {
  int weight = -1;
  int low_rank_a = -1, low_rank_b = -1;

  bool empty() const { return weight < 0 && !has_factors(); }
  bool has_factors() const { return low_rank_a >= 0 && low_rank_b >= 0; }
};
WeightParts FindWeightParts(const std::vector<Parameter>& parameters, const std::string& name);

// Reads the segment of parameter i.
using SegmentSource = std::function<StatusOr<std::vector<float>>(int)>;

// `parts` (not empty) merged in fp32: `out * in` elements, row-major. InvalidInput where no weight
// expresses them (FactorKind::kNonlinear). Reads the parts in order: weight, A, B.
StatusOr<std::vector<float>> MergedWeight(const std::vector<Parameter>& parameters,
                                          const WeightParts& parts, const SegmentSource& read);

}  // namespace filigree

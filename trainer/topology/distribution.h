// How a sparsity is shared between the weights of one entry: counts of stored units (single weights
// or blocks), exact to the unit.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "trainer/linear/linear.h"
#include "trainer/spec.h"

namespace filigree {

// What a distribution sees of a weight.
struct WeightShape {
  int64_t out = 0, in = 0;
  int64_t units = 0;  // cells, or blocks of the padded grid
};

// Whether weights of this spec are stored in blocks, rather than one by one.
bool StoresBlocks(const SparsitySpec& spec);
// The units that a weight of this spec has.
WeightShape ShapeOf(const LinearSpec& linear, const SparsitySpec& spec);

struct Distribution {
  std::string_view name;
  std::string_view summary;
  // Stored units of each weight. nullptr: a common threshold decides (global).
  std::vector<int64_t> (*counts)(std::span<const WeightShape> weights, double sparsity);
};

// Rows: uniform, er, erk, global.
//   uniform  round((1 - sparsity) units) of each weight
//   er, erk  density_l proportional to (out + in) / (out * in) (Mocanu et al. 2018, Evci et al.
//            2020; the same for linear maps, whose kernels are 1 x 1). A weight whose density
//            would exceed 1 is dense and the factor is computed again. The total is
//            round((1 - sparsity) units of all); largest remainders are rounded up.
std::span<const Distribution> Distributions();
const Distribution* FindDistribution(std::string_view name);

// The fewest units a weight keeps under a common threshold: one, `min_density` of itself, and
// (Global MP, "minimum threshold") `min_share` of the units of all weights of the entry, or all of
// itself.
std::vector<int64_t> GlobalFloors(std::span<const WeightShape> weights, const SparsitySpec& spec);

// Whether every weight is drawn at the entry's own sparsity: uniform, and global, for which there
// is no score yet.
bool SharesAlike(const SparsitySpec& spec);

// Units of each weight that a layout drawn at `sparsity` stores.
std::vector<int64_t> DrawnCounts(std::span<const WeightShape> weights, const SparsitySpec& spec,
                                 double sparsity);

}  // namespace filigree

// Compaction: a model whose removed units are gone from memory too.
//
// What stays is exact: a removed unit's cells are zero, so the smaller model computes the same
// function, and its next update is the one that the larger model's cells would have got. Sizes are
// multiples of the configured alignments; where fewer than an alignment's units were removed, some
// removed ones stay as zeros.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "trainer/parameter.h"
#include "trainer/pruning/groups.h"
#include "trainer/spec.h"

namespace filigree {

struct Compaction {
  ModelSpec model;  // the smaller one
  // By set of the larger model's table: the units that stay, by their index in the set, ascending.
  std::vector<std::vector<int64_t>> kept;
  // Units that stay by their number in the larger model, in the order of the smaller one's.
  std::vector<int64_t> KeptUnits(const UnitTable& from) const;
};

// `removed[unit]`: its cells are all zero. Sizes are rounded up to the alignments of `pruning`, but
// never beyond what there is.
Compaction PlanCompaction(const ModelSpec& model, const UnitTable& table,
                          const std::vector<bool>& removed, const PruningSpec& pruning);

// How many units of a set stay where `live` of `count` do.
int64_t AlignedCount(const UnitSet& set, int64_t live, const PruningSpec& pruning);

// The rows and columns of one parameter that stay, ascending.
struct KeptCells {
  std::vector<int64_t> rows, columns;
};
KeptCells KeptCellsOf(const Parameter& parameter, const UnitTable& table,
                      const Compaction& compaction);

}  // namespace filigree

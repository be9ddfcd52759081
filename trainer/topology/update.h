// The engine: carries out a rule's action on the weights of one sparsity entry.
//
// A pure function of its arguments: ranks that give the same bits get the same layouts. Counts are
// exact to the unit, ties included (selection.h). A unit that an event drops is not grown by the
// same event, so every grown unit starts at zero.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/sparse/layout.h"
#include "trainer/topology/distribution.h"
#include "trainer/topology/rule.h"

namespace filigree {

// One weight of an entry.
struct TopologyWeight {
  std::string name;
  WeightShape shape;
  SparseLayout layout;                  // unstructured or blocked
  std::vector<float> keep_scores = {};  // of all its units; read where they are stored
  std::vector<float> grow_scores =
      {};  // of all its units; equal ones (or none at all) grow at random
};

// The layouts after the event, in the order of `weights`. `step` counts over the whole run: it
// tells one event's tie-breaks from another's.
std::vector<SparseLayout> ProposeLayouts(std::span<const TopologyWeight> weights,
                                         const SparsitySpec& spec, const TopologyAction& action,
                                         Growth growth, uint64_t seed, int64_t step);

struct TopologyChange {
  int64_t dropped = 0, grown = 0;  // cells inside the weights
};
TopologyChange CountChange(const SparseLayout& before, const SparseLayout& after);

}  // namespace filigree

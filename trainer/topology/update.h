// The engine: carries out a rule's action on the weights of one sparsity entry, on the device.
//
// A pure function of its arguments: ranks that give the same bits get the same layouts. Counts are
// exact to the unit, ties included (Backend's SelectHighest). A unit that an event drops is not
// grown by the same event, so every grown unit starts at zero.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "trainer/topology/distribution.h"
#include "trainer/topology/rule.h"

namespace filigree {

// One weight of an entry.
struct TopologyWeight {
  std::string name;
  WeightShape shape;
  SparseLayout layout;  // unstructured or blocked
};

// Scores of the units of an entry's weights, in the device's memory: made when the engine asks.
class ScoreSource {
 public:
  virtual ~ScoreSource() = default;
  // What the stored units of a weight, whose layout `prepared` is, are kept by: written to `memory`
  // [units] F32, zero beforehand, and returned, or nothing where all are equal.
  virtual ConstTensorView Keep(size_t weight, const PreparedLayout& prepared,
                               TensorView memory) = 0;
  // What its units grow by, the highest magnitude first, [units] F32, valid until the next call;
  // nothing: at random.
  virtual ConstTensorView Grow(size_t weight) = 0;
};

// The layouts after the event, in the order of `weights`. `step` counts over the whole run: it
// tells one event's tie-breaks from another's. Synchronises `stream`. Keep is asked once for each
// weight in order, then Grow where something grows: weight by weight, or (one threshold over all)
// after all of them. With `prepared`, what the layouts were prepared as is appended there: while it
// is held, preparing them again costs a device that made their indices nothing.
std::vector<SparseLayout> ProposeLayouts(std::span<const TopologyWeight> weights,
                                         const SparsitySpec& spec, const TopologyAction& action,
                                         Growth growth, uint64_t seed, int64_t step,
                                         ScoreSource& scores, Backend& backend, Stream& stream,
                                         std::vector<std::unique_ptr<PreparedLayout>>* prepared =
                                             nullptr);

// The device memory that this takes beside the new layouts' indices: a score and a mark for each
// unit of the largest weight, or, under one threshold, of all.
int64_t ProposalBytes(std::span<const WeightShape> shapes, const SparsitySpec& spec);

struct TopologyChange {
  int64_t dropped = 0, grown = 0;  // cells inside the weights
};
TopologyChange CountChange(const SparseLayout& before, const SparseLayout& after);

}  // namespace filigree

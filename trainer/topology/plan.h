// What a run's configuration says about its topology, before and between events: the sparsity that
// each weight starts a phase with, what is due when, and what is wrong with it.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/status.h"
#include "trainer/linear/linear.h"
#include "trainer/topology/distribution.h"
#include "trainer/topology/rule.h"

namespace filigree {

// The weights that one sparsity entry of a phase governs.
struct TopologyEntry {
  SparsitySpec spec;
  const TopologyRule* rule = nullptr;
  std::vector<LinearSpec> linears = {};
};
// Entries that govern at least one sparse weight, in the order of the phase's list.
std::vector<TopologyEntry> EntriesOf(std::span<const LinearSpec> linears, const PhaseSpec& phase);

Timeline TimelineOf(const PhaseSpec& phase);

// The phase's sparsity with one entry for each governed weight, which carries the weight's own
// sparsity at the phase's start (after the distribution shared it out): what layouts are drawn
// from.
std::vector<SparsitySpec> InitialSparsity(std::span<const LinearSpec> linears,
                                          const PhaseSpec& phase);

// Weight by weight, what the registry has to say about the phase's sparsity: each kind of problem
// once, a line, with the first weight that has it; or OK.
Status ValidateParameterisations(std::span<const LinearSpec> linears, const PhaseSpec& phase);

// The layouts with which a phase goes on from `previous` (by parameter name): the weights whose
// rule inherits, and whose layout is of the kind that the phase asks for. The others are drawn.
std::map<std::string, SparseLayout> InheritedLayouts(
    std::span<const LinearSpec> linears, const PhaseSpec& phase,
    const std::map<std::string, SparseLayout>& previous);

// Whether `layout` is of the kind (and block) that `spec` stores weights in.
bool SameKind(const SparseLayout& layout, const SparsitySpec& spec);

// Whether slots of this phase need an age of their own: some rule grows, or cells that the phase
// before did not store join others that keep their moments.
bool TracksAges(const RunSpec& run, int phase);

// What an event needs from the backward passes of the step before it.
struct StatisticsNeeds {
  bool grads = false, hessian = false, inputs = false;
  bool any() const { return grads || inputs; }
};
// Of what is due before step `step` of the phase; nothing where no event is.
StatisticsNeeds NeedsOf(std::span<const TopologyEntry> entries, const Timeline& timeline,
                        int64_t step);

// The sparsity that an entry's layouts are drawn at when its phase begins.
double DrawnSparsity(const TopologyEntry& entry);
std::vector<WeightShape> ShapesOf(const TopologyEntry& entry);

// Whether the rule, or some rule of the phase, changes the topology that the phase began with.
bool MovesTopology(const TopologyRule& rule);
bool MovesTopology(const PhaseSpec& phase);

// Everything that is wrong with the run's topology, one problem a line, or OK. Each says the phase,
// the entry, the field and the mend.
Status ValidateTopology(const RunSpec& run, std::span<const LinearSpec> linears);

}  // namespace filigree

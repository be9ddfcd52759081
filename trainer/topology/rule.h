// Topology rules: which weights live, and when that changes.
//
// A rule is pure policy: a pure function of the configuration and the step says what is due. One
// engine (update.h) carries out whatever it asks for, on single weights and on blocks alike. To add
// a rule: one file with a row here, and its line in registry.cc; the tests loop over the registry.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "kernels/base/status.h"
#include "trainer/spec.h"
#include "trainer/topology/timeline.h"

namespace filigree {

enum class Growth { kNone, kRandom, kGradient };

// What is due at one event. The engine first brings the entry to `sparsity` (dropping the stored
// units of lowest score or, where the rule grows, growing), then drops a further `drop_fraction` of
// what is stored in each weight and grows as many of the units that were dead before that.
struct TopologyAction {
  double sparsity = 0;
  double drop_fraction = 0;
};

// Where the layout of a phase comes from when the phase begins.
enum class PhaseEntry {
  kDraw,     // drawn at random at the initial sparsity
  kInherit,  // the phase before's, where it has one of the same kind; else drawn
};

struct TopologyRule {
  std::string_view name;
  std::string_view summary;
  Growth growth = Growth::kNone;
  PhaseEntry entry = PhaseEntry::kInherit;
  // The paper's defaults. initial_sparsity < 0: the target.
  SparsitySpec (*defaults)();
  // What is due before step `step` of the phase (0: at its start); nothing at most steps.
  std::optional<TopologyAction> (*action)(const SparsitySpec& spec, const Timeline& timeline,
                                          int64_t step);
  // The sparsity after everything due up to and including `step` was done.
  double (*sparsity)(const SparsitySpec& spec, const Timeline& timeline, int64_t step);
  // What is wrong with this spec for a phase of this length, or OK. Messages begin with a field.
  Status (*validate)(const SparsitySpec& spec, const Timeline& timeline);
};

// All rows, and one by name (nullptr where there is none).
std::span<const TopologyRule* const> TopologyRules();
const TopologyRule* FindTopologyRule(std::string_view name);

}  // namespace filigree

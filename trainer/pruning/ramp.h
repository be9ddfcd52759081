// The ramp: parameters against steps, and which units go next.
//
// Everything here is a pure function of its arguments: ranks with the same scores remove the same
// units.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "trainer/pruning/groups.h"
#include "trainer/topology/timeline.h"

namespace filigree {

// Parameters of a model whose linears are dense; padding is counted nowhere.
int64_t CountParameters(const ModelSpec& model);
// The model whose sets have `counts` units each.
ModelSpec ModelOf(const ModelSpec& model, const UnitTable& table, std::span<const int64_t> counts);

class Ramp {
 public:
  // From `initial_parameters` to the target; steps count from the phase's start.
  Ramp(const PruningSpec& spec, const Timeline& timeline, int64_t initial_parameters);

  // Parameters that may live after step `step`.
  int64_t AllowedAt(int64_t step) const;
  // Whether units may go after step `step`: at the ramp's events, and, as often, after its end,
  // until sizes come out.
  bool IsEvent(int64_t step) const;
  // The first step from `step` on after which units may go: never the first step of the phase,
  // which has no scores yet.
  int64_t EventFrom(int64_t step) const;
  // Whether gradients of step `step` count for saliency: from a few lengths of the moving average
  // before the first removal.
  bool Gathers(int64_t step) const { return step >= first_gathered_; }
  int64_t first_gathered() const { return first_gathered_; }
  int64_t first_step() const { return events_.first; }
  int64_t last_step() const { return events_.last(); }
  // Steps between events.
  int64_t interval() const { return events_.interval; }

 private:
  SparsitySpec curve_;
  Timeline timeline_;
  EventGrid events_;
  int64_t initial_, target_;
  int64_t first_gathered_ = 0;
};

// Removes from `live` (by unit) the units of lowest score until `allowed` parameters are left, or
// as many units as an event may, and returns them, in this order. A set keeps its minimum, rounded
// up to its alignment. With `even_layers`, no layer falls below the next aligned size under that
// of the largest layer of its kind, so that all reach it before any goes further. `finishing`: the
// ramp is over, what counts are the parameters of aligned sizes, and units go first from sets that
// are between two.
std::vector<int64_t> ChooseUnits(const ModelSpec& model, const UnitTable& table,
                                 std::span<const double> scores, const std::vector<bool>& stays,
                                 const PruningSpec& spec, int64_t allowed, bool finishing);

}  // namespace filigree

// Clocks and sparsity curves: when a rule acts, and the sparsity it aims at then.
//
// Everything is a pure function of the configuration. Steps are counted from the phase's start;
// "step t" means: after t optimizer steps, before the next forward pass.
#pragma once

#include <cstdint>
#include <optional>

#include "trainer/spec.h"

namespace filigree {

// The length of one phase.
struct Timeline {
  int64_t steps = 0;
  int64_t tokens_per_step = 1;
};

// The events of a curve: steps first, first + interval, ..., `count` of them.
struct EventGrid {
  int64_t first = 0, interval = 1, count = 0;
  int64_t last() const { return first + interval * (count - 1); }
  // The number of the event at `step`, if there is one there.
  std::optional<int64_t> IndexAt(int64_t step) const;
  // The number of the last event at or before `step`; -1: none yet.
  int64_t LatestAt(int64_t step) const;
};

// Begin and end on the spec's clock. FRACTION and COMPUTE round both to the nearest multiple of the
// interval; STEPS and TOKENS begin where they say and stop at or before the end.
//
// COMPUTE ("The Journey Matters", arXiv 2501.12486): begin b and end e are fractions of what
// training these weights costs, step by step proportional to their density. With densities k0
// before, k1 after and the curve's mean g between, the phase costs C = 1 / (b/k0 + (e-b)/g +
// (1-e)/k1) of a dense one, and in fractions of its steps the curve begins at b C / k0 and lasts
// (e-b) C / g.
EventGrid EventsOf(const SparsitySpec& spec, const Timeline& timeline);

// The sparsity after event `index` of `count`, from `spec.initial_sparsity` to `spec.sparsity`:
//   CUBIC      s1 + (s0 - s1)(1 - p)^3, p = index / (count - 1)   (Zhu and Gupta 2017: no change at
//              the first event)
//   GEOMETRIC  density k0 (k1 / k0)^p, p = (index + 1) / count    (Journey: k1^p from dense)
//   LINEAR     with p = (index + 1) / count
//   CONSTANT   s1 at once
double SparsityAtEvent(const SparsitySpec& spec, int64_t index, int64_t count);

// The sparsity after everything up to and including step `step`, and whether it may change there.
// Both also know POINTS, whose events are the points themselves.
double CurveSparsity(const SparsitySpec& spec, const Timeline& timeline, int64_t step);
bool IsCurveEvent(const SparsitySpec& spec, const Timeline& timeline, int64_t step);

// The mean density over a phase of this length that follows the curve, 0 <= steps.
double MeanCurveDensity(const SparsitySpec& spec, double from, double to);

// The drop fraction at `step`: constant, or final + (first - final)(1 + cos(pi step / end)) / 2
// with end = drop_end * steps (RigL, SET).
double DropFractionAt(const SparsitySpec& spec, const Timeline& timeline, int64_t step);
// Whether a drop-and-grow event is due: every update_interval steps after the start, before end.
bool IsDropEvent(const SparsitySpec& spec, const Timeline& timeline, int64_t step);

}  // namespace filigree

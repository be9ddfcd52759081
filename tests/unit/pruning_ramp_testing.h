// A small model, a ramp over it, and what a run of that ramp leaves by given scores.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "trainer/pruning/compaction.h"
#include "trainer/pruning/ramp.h"

namespace filigree {

inline ModelSpec SmallModel(ModelFamily family = ModelFamily::kLlama) {
  return {.family = family,
          .layers = 3,
          .width = 32,
          .heads = family == ModelFamily::kLlama ? 8 : 4,
          .kv_heads = 4,
          .head_size = family == ModelFamily::kLlama ? 4 : 8,
          .feed_forward = 48,
          .vocab_size = 37,
          .padded_vocab_size = 64,
          .max_positions = 16,
          .tied_head = family == ModelFamily::kGpt2};
}

inline PruningSpec SpecOf(int64_t target) {
  PruningSpec spec;
  spec.target_parameters = target;
  spec.kinds[static_cast<size_t>(UnitKind::kFeedForward)].alignment = 8;
  spec.kinds[static_cast<size_t>(UnitKind::kStem)].alignment = 8;
  return spec;
}

// Removes units step by step, as a run of so many steps does, and returns the model that is left.
inline ModelSpec RunRamp(const ModelSpec& model, const PruningSpec& spec,
                         const std::vector<double>& scores, int64_t steps) {
  const UnitTable table(model);
  std::vector<bool> stays(scores.size(), true);
  const Ramp ramp(spec, {.steps = 40, .tokens_per_step = 1}, CountParameters(model));
  for (int64_t step = 2; step <= steps; ++step) {
    if (!ramp.IsEvent(step)) continue;
    const bool finishing = step >= ramp.last_step();
    const auto chosen =
        ChooseUnits(model, table, scores, stays, spec, ramp.AllowedAt(step), finishing);
    for (const int64_t unit : chosen) {
      EXPECT_TRUE(stays[static_cast<size_t>(unit)]);
      stays[static_cast<size_t>(unit)] = false;
    }
    if (finishing && chosen.empty()) break;
  }
  stays.flip();
  return PlanCompaction(model, table, stays, spec).model;
}

}  // namespace filigree

// Random configurations of the topology engine: every rule, criterion, distribution, clock and
// curve, on single weights and on blocks, in one phase or two.
#pragma once

#include <cmath>
#include <cstdint>
#include <string_view>

#include "kernels/base/rng.h"
#include "trainer/topology/criterion.h"
#include "trainer/topology/distribution.h"
#include "trainer/topology/rule.h"

namespace filigree {

// Draws of one random configuration.
class Draw {
 public:
  explicit Draw(uint64_t number) : number_(number) {}
  int64_t Below(int64_t bound) {
    return static_cast<int64_t>(RandomBelow(number_, 17, next_++, static_cast<uint64_t>(bound)));
  }
  double Uniform(double from, double to) {
    return from + (to - from) * RandomUniform(number_, 18, next_++);
  }
  template <typename T, size_t kCount>
  T Of(const T (&choices)[kCount]) {
    return choices[Below(kCount)];
  }

 private:
  uint64_t number_;
  uint64_t next_ = 0;
};

// A curve through one to three points that rises, or falls where the rule grows.
inline void RandomPoints(Draw& draw, double unit, SparsitySpec* spec) {
  spec->curve = SparsityCurve::kPoints;
  const int64_t count = 1 + draw.Below(3);
  for (int64_t i = 1; i <= count; ++i) {
    const double share = static_cast<double>(i) / static_cast<double>(count);
    spec->points.push_back(
        {.at = std::round(share * unit * 1e3) / 1e3,
         .sparsity = spec->initial_sparsity + share * (spec->sparsity - spec->initial_sparsity)});
  }
  spec->points.back().sparsity = spec->sparsity;
}

inline SparsitySpec RandomSparsity(Draw& draw, std::string_view rule_name,
                                   const Timeline& timeline) {
  const TopologyRule& rule = *FindTopologyRule(rule_name);
  SparsitySpec spec = rule.defaults();
  spec.rule = rule.name;
  spec.include = {"layers.*.attention.*.weight", "layers.*.mlp.*.weight"};
  spec.parameterisation = draw.Of({"masked", "block_sparse"});
  spec.block_out = draw.Of({1, 4, 8});
  spec.block_in = draw.Of({2, 4, 8});
  spec.sparsity = draw.Uniform(0.1, 0.8);
  if (spec.initial_sparsity < 0) spec.initial_sparsity = spec.sparsity;
  if (rule.name == "sparse_to_dense") spec.sparsity = draw.Uniform(0, 0.5);
  if (rule.name == "granet") spec.initial_sparsity = spec.sparsity / 2;
  const auto distributions = Distributions();
  spec.distribution = distributions[draw.Below(static_cast<int64_t>(distributions.size()))].name;
  const auto criteria = Criteria();
  spec.criterion = criteria[draw.Below(static_cast<int64_t>(criteria.size()))].name;
  spec.curve = draw.Of({SparsityCurve::kConstant, SparsityCurve::kCubic, SparsityCurve::kGeometric,
                        SparsityCurve::kLinear, SparsityCurve::kPoints});
  spec.clock = draw.Of({Clock::kFraction, Clock::kCompute, Clock::kSteps, Clock::kTokens});
  double unit = 1;  // the clock's at the end of the phase
  if (spec.clock == Clock::kSteps) unit = static_cast<double>(timeline.steps);
  if (spec.clock == Clock::kTokens) {
    unit = static_cast<double>(timeline.steps * timeline.tokens_per_step);
  }
  spec.begin = draw.Uniform(0, 0.5) * unit;
  spec.end = draw.Uniform(spec.begin, unit);
  if (spec.curve == SparsityCurve::kPoints) RandomPoints(draw, unit, &spec);
  spec.update_interval = 1 + draw.Below(3);
  spec.drop_fraction = draw.Uniform(0, 1);
  spec.final_drop_fraction = 0;
  spec.drop_end = draw.Uniform(0.3, 1);
  const double floor = draw.Uniform(0, 0.1);
  if (spec.distribution == "global") spec.min_density = floor;
  spec.growth_ramp_steps = draw.Below(5);
  return spec;
}

inline void AddPhase(Draw& draw, std::string_view rule, RunSpec* run) {
  PhaseSpec phase;
  phase.name = rule;
  phase.first_step = run->total_steps();
  phase.steps = 4 + draw.Below(5);
  phase.batch = {.seq_len = 8, .tokens_per_step = 40, .micro_batch_sequences = 2};
  phase.schedule.lr = 0.01;
  phase.sparsity = {RandomSparsity(draw, rule, {.steps = phase.steps, .tokens_per_step = 40})};
  run->phases.push_back(phase);
}

// One phase under a rule drawn, after one that prunes where the rule needs it.
inline RunSpec RandomRun(uint64_t number) {
  Draw draw(number);
  RunSpec run;
  run.seed = number;
  run.zero_stage = static_cast<int>(draw.Below(2));
  run.deterministic = draw.Below(2) == 1;
  run.bucket_megabytes = 0.01;
  run.model = {.layers = 1 + draw.Below(2),
               .width = 24,
               .heads = 3,
               .kv_heads = 3,
               .head_size = 8,
               .feed_forward = 30 + draw.Below(10),
               .vocab_size = 31,
               .padded_vocab_size = 32,
               .max_positions = 8};
  const auto rules = TopologyRules();
  const std::string_view rule = rules[draw.Below(static_cast<int64_t>(rules.size()))]->name;
  const bool rewinds = rule == "iterative_magnitude";
  if (rule == "inherit" || rewinds || draw.Below(4) == 0) {
    AddPhase(draw, draw.Of({"gradual_magnitude", "static_random", "set"}), &run);
  }
  AddPhase(draw, rule, &run);
  if (run.phases.size() == 1) return run;
  SparsitySpec& spec = run.phases[1].sparsity[0];
  const SparsitySpec& before = run.phases[0].sparsity[0];
  if (rule == "inherit") {  // what there is to inherit
    spec.parameterisation = before.parameterisation;
    spec.block_out = before.block_out;
    spec.block_in = before.block_in;
    spec.sparsity = spec.initial_sparsity = before.sparsity;
  }
  if (rewinds) run.phases[1].rewind_step = 0;
  if (!rewinds && draw.Below(2) == 0) run.phases[1].moments = Moments::kKeep;
  return run;
}

}  // namespace filigree

// What the topology engine refuses, and where it says so.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/unit/topology_testing.h"
#include "trainer/topology/plan.h"

namespace filigree {
namespace {

Status ValidateSpec(const SparsitySpec& spec, double lr = 1e-3) {
  RunSpec run;
  PhaseSpec phase;
  phase.name = "only";
  phase.steps = 1000;
  phase.batch = {.seq_len = 8, .tokens_per_step = 64, .micro_batch_sequences = 1};
  phase.schedule.lr = lr;
  phase.sparsity = {spec};
  run.phases = {phase};
  const std::vector<LinearSpec> linears = {{.name = "layers.0.mlp.up", .out = 16, .in = 32}};
  return ValidateTopology(run, linears);
}

TEST(ValidateTest, DefaultsOfEveryRulePass) {
  for (const TopologyRule* rule : TopologyRules()) {
    if (rule->name == "inherit" || rule->name == "iterative_magnitude") continue;
    const SparsitySpec spec =
        RuleSpec(std::string(rule->name).c_str(), rule->name == "sparse_to_dense" ? 0 : 0.75);
    EXPECT_TRUE(ValidateSpec(spec).ok()) << ValidateSpec(spec).message();
  }
}

TEST(ValidateTest, BadInputIsRefusedWithItsPlace) {
  const auto refused = [](const SparsitySpec& spec, const char* text, double lr = 1e-3) {
    const Status status = ValidateSpec(spec, lr);
    EXPECT_EQ(status.exit_code(), 2) << text;
    EXPECT_NE(status.message().find(text), std::string::npos) << status.message();
    EXPECT_NE(status.message().find("phase only"), std::string::npos) << status.message();
  };
  SparsitySpec spec = RuleSpec("gradual_magnitude", 0.75);
  spec.begin = 0.8;
  spec.end = 0.3;
  refused(spec, "end = 0.3 is before begin = 0.8");
  spec = RuleSpec("gradual_magnitude", 0.75);
  spec.end = 1.5;
  refused(spec, "end = 1.5");
  spec = RuleSpec("gradual_magnitude", 0.75);
  spec.initial_sparsity = 0.9;
  refused(spec, "the sparsity falls from 0.9");
  spec = RuleSpec("gradual_magnitude", 0.9995);
  refused(spec, "leaves nothing of layers.0.mlp.up.weight");
  spec = RuleSpec("journey", 0.9999);
  refused(spec, "fewer than the floors");
  refused(RuleSpec("rigl", 0.75), "the phase is frozen", 0);
  spec = RuleSpec("gradual_magnitude", 0.75);
  spec.criterion = "taylor";
  refused(spec, "the phase is frozen", 0);
  spec.criterion = "snip";
  refused(spec, "take rule one_shot");
  refused(RuleSpec("inherit", 0.75), "no phase before it");
  refused(RuleSpec("iterative_magnitude", 0.75), "rewind_step");
  spec = RuleSpec("sparse_to_dense", 0);
  spec.distribution = "global";
  refused(spec, "distribution = global");
  spec = RuleSpec("set", 0.75);
  spec.update_interval = 5000;
  refused(spec, "update_interval = 5000");
  spec = RuleSpec("gradual_magnitude", 0.75);
  spec.min_density = 0.1;
  refused(spec, "min_density = 0.1 is a floor under one threshold");
  spec = RuleSpec("gradual_magnitude", 0.75);
  spec.criterion = "movement";
  refused(spec, "nothing moves before it", 0);
  spec = RuleSpec("one_shot", 0.75);
  spec.criterion = "movement";
  refused(spec, "nothing moves before it");
  spec = RuleSpec("static_random", 0.75);
  spec.include = {"layers.*.mlp.*", "layers.*.attn.*", "embedding.weight"};
  refused(spec, "include = \"layers.*.attn.*\" matches no weight");
  refused(spec, "include = \"embedding.weight\" matches no weight");
}

}  // namespace
}  // namespace filigree

// How a configuration resolves: defaults, phases, overrides, the effective text.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <tuple>
#include <vector>

#include "tests/unit/config_testing.h"

namespace filigree {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(ConfigTest, ResolvesDefaults) {
  const RunSpec spec = Spec(kSmall);
  EXPECT_EQ(spec.name, "small");
  EXPECT_EQ(spec.seed, 1234u);
  ModelSpec model;
  model.layers = 2;
  model.width = 48;
  model.heads = model.kv_heads = 3;
  model.head_size = 16;
  model.feed_forward = 128;
  model.vocab_size = 257;
  model.padded_vocab_size = 320;
  model.max_positions = 32;
  EXPECT_EQ(spec.model, model);
  ASSERT_EQ(spec.phases.size(), 1u);
  const PhaseSpec& phase = spec.phases[0];
  EXPECT_EQ(phase.name, "phase_1");
  EXPECT_EQ(phase.steps, 20);
  EXPECT_EQ(phase.schedule.warmup_steps, 0);  // 1 % of 20 steps, rounded
  EXPECT_EQ(phase.data.train[0].glob, "a_*.bin");
  ASSERT_EQ(phase.sparsity.size(), 1u);
  EXPECT_EQ(phase.sparsity[0].sparsity, 0.75);
  EXPECT_THAT(phase.sparsity[0].include,
              ElementsAre("layers.*.attention.*.weight", "layers.*.mlp.*.weight"));
  EXPECT_EQ(spec.zero_stage, 1);
  EXPECT_EQ(spec.checkpoint_keep_last, 3);
}

TEST(ConfigTest, StartAndTeacherAreOptionalAndInherited) {
  const RunSpec plain = Spec(kSmall);
  EXPECT_TRUE(plain.init_from.empty());
  EXPECT_FALSE(plain.phases[0].distillation.on());
  const RunSpec spec = Spec(std::string(kSmall) + R"(init_from: "hf"
distillation { teacher: "t" alpha: 0.25 }
phase { steps: 2 distillation { temperature: 4 } }
phase { steps: 2 distillation { alpha: 0 } }
)");
  EXPECT_EQ(spec.init_from, "hf");
  EXPECT_EQ(spec.phases[0].distillation.temperature, 2);
  EXPECT_EQ(spec.phases[1].distillation.temperature, 4);
  EXPECT_EQ(spec.phases[1].distillation.alpha, 0.25);
  EXPECT_EQ(spec.phases[1].distillation.teacher, "t");
  EXPECT_TRUE(spec.phases[1].distillation.on());
  EXPECT_FALSE(spec.phases[2].distillation.on());
  // The effective configuration says the same.
  auto loaded =
      Parse(Parse(std::string(kSmall) + "distillation { teacher: \"t\" }")->effective_text);
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_EQ(loaded->spec.phases[0].distillation.alpha, 0.5);
}

TEST(ConfigTest, DistillationIsChecked) {
  EXPECT_THAT(Error(std::string(kSmall) + "distillation { alpha: 0.5 }"),
              HasSubstr("run.textproto:7: distillation.teacher is missing"));
  EXPECT_THAT(Error(std::string(kSmall) + "distillation { teacher: \"t\" alpha: 1.5 }"),
              HasSubstr("distillation.alpha must lie in [0, 1]"));
  EXPECT_THAT(Error(std::string(kSmall) + "distillation { teacher: \"t\" temperature: 0 }"),
              HasSubstr("distillation.temperature must be positive"));
}

TEST(ConfigTest, Gpt2HasItsOwnDefaults) {
  const ModelSpec model = Spec(With("layers", "family: GPT2 layers")).model;
  EXPECT_EQ(model.feed_forward, 192);
  EXPECT_TRUE(model.tied_head);
  EXPECT_EQ(model.norm_epsilon, 1e-5);
}

constexpr char kEffective[] = R"(# proto-file: configs/run.proto
# proto-message: filigree.config.RunConfig
name: "small"
seed: 1234
model {
  family: LLAMA
  layers: 2
  width: 48
  heads: 3
  kv_heads: 3
  head_size: 16
  feed_forward: 128
  vocab_size: 257
  padded_vocab_size: 320
  max_positions: 32
  tied_head: false
  rope_theta: 10000
  norm_epsilon: 1e-06
  init_std: 0.02
  recompute: NONE
  gate_activation: SILU
  gelu_derivative_bits: 0
}
data {
  train {
    glob: "a_*.bin"
    weight: 1
  }
  validation: "v.bin"
  bare_dtype: NOT_BARE
  layout: PACKED
  shuffle: true
  loss_after_token: -1
  delimiter_token: -1
  padding_token: -1
}
batch {
  seq_len: 32
  tokens_per_step: 256
  micro_batch_sequences: 4
}
optimizer {
  beta1: 0.9
  beta2: 0.95
  epsilon: 1e-08
  weight_decay: 0.1
  clip_norm: 1
  state_dtype: F32_MASTER
  moments: FULL
  update: GLOBAL
}
schedule {
  lr: 0.0003
  shape: COSINE
  warmup_fraction: 0.01
  final_lr_fraction: 0.1
  wsd_decay_fraction: 0.2
}
sparsity {
  include: "layers.*.attention.*.weight"
  include: "layers.*.mlp.*.weight"
  parameterisation: "block_sparse"
  sparsity: 0.75
  block_out: 32
  block_in: 32
  rule: "static_random"
  distribution: "uniform"
  initial_sparsity: 0.75
  curve: CONSTANT
  clock: FRACTION
  begin: 0
  end: 1
  update_interval: 100
  drop_fraction: 0
  final_drop_fraction: 0
  drop_curve: DROP_COSINE
  drop_end: 0.75
  criterion: "magnitude"
  min_density: 0
  min_share: 0
  growth_ramp_steps: 100
  rank: 0
  alpha: 0
  sparse_part: UNSTRUCTURED
  compute: AUTO
  keep_rebuilt: false
  initialisation: SLTRAIN
  n: 2
  m: 4
  transposable: false
}
evaluation {
  every_steps: 250
  tokens: 1048576
  sample_tokens: 40
  formula: TOKEN_MEAN
}
phase {
  name: "phase_1"
  tokens: 5120
  moments: FRESH
}
parallel {
  zero_stage: 1
  bucket_megabytes: 0
  cpu_threads: 0
  ranks: 0
  deterministic: false
  device: AUTO
  timeout_seconds: 600
  link {
    network_gbps: 368
    network_latency_us: 14
    node_gbps: 2880
    node_latency_us: 3.4
    gpus_per_node: 8
  }
  grad_dtype: F32
  wire_dtype: F32
  graphs: WHERE_THEY_GAIN
}
checkpoint {
  every_steps: 1000
  keep_last: 3
}
log {
  every_steps: 10
  tensorboard: true
  peak_tflops: 0
}
)";

TEST(ConfigTest, EffectiveTextIsComplete) {
  auto loaded = Parse(kSmall);
  ASSERT_TRUE(loaded.ok());
  EXPECT_EQ(loaded->effective_text, kEffective);
}

TEST(ConfigTest, EffectiveTextLoadsToItself) {
  auto first = Parse(std::string(kSmall) +
                     "phase { steps: 3 schedule { warmup_steps: 2 } "
                     "sparsity { parameterisation: \"dense\" } }");
  ASSERT_TRUE(first.ok()) << first.status().message();
  auto second = Parse(first->effective_text);
  ASSERT_TRUE(second.ok()) << second.status().message();
  EXPECT_EQ(second->effective_text, first->effective_text);
  EXPECT_EQ(second->spec.model, first->spec.model);
  ASSERT_EQ(second->spec.phases.size(), 2u);
  EXPECT_EQ(second->spec.phases[1].schedule.warmup_steps, 2);
  EXPECT_EQ(second->spec.phases[1].sparsity, first->spec.phases[1].sparsity);
}

TEST(ConfigTest, PhasesMergeFieldByField) {
  const RunSpec spec = Spec(std::string(kSmall) + R"(
    phase {
      name: "dense tail" steps: 10 moments: KEEP
      data { train { glob: "b.bin" weight: 2 } train { glob: "c.bin" } }
      batch { seq_len: 16 }
      schedule { lr: 1e-4 warmup_steps: 5 }
      sparsity { parameterisation: "dense" }
    })");
  ASSERT_EQ(spec.phases.size(), 2u);
  const PhaseSpec& tail = spec.phases[1];
  EXPECT_EQ(tail.first_step, 20);
  EXPECT_EQ(spec.total_steps(), 30);
  EXPECT_EQ(tail.moments, Moments::kKeep);
  ASSERT_EQ(tail.data.train.size(), 2u);
  EXPECT_EQ(tail.data.train[0].weight, 2);
  EXPECT_EQ(tail.data.validation, "v.bin");
  EXPECT_EQ(tail.batch.seq_len, 16);
  EXPECT_EQ(tail.batch.tokens_per_step, 256);
  EXPECT_EQ(tail.schedule.lr, 1e-4);
  EXPECT_EQ(tail.schedule.warmup_steps, 5);
  ASSERT_EQ(tail.sparsity.size(), 1u);
  EXPECT_EQ(tail.sparsity[0].parameterisation, "dense");
  EXPECT_EQ(spec.PhaseIndexOf(0), 0);
  EXPECT_EQ(spec.PhaseIndexOf(19), 0);
  EXPECT_EQ(spec.PhaseIndexOf(20), 1);
  EXPECT_EQ(spec.PhaseOf(30).name, "dense tail");
}

TEST(ConfigTest, OverridesMergeAndReplaceLists) {
  const RunSpec spec = Spec(
      kSmall, {"seed: 7 batch { tokens_per_step: 512 }", "phase { steps: 4 } phase { steps: 5 }"});
  EXPECT_EQ(spec.seed, 7u);
  EXPECT_EQ(spec.phases[0].batch.tokens_per_step, 512);
  EXPECT_EQ(spec.phases[0].batch.seq_len, 32);
  ASSERT_EQ(spec.phases.size(), 2u);
  EXPECT_EQ(spec.total_steps(), 9);
}

TEST(ConfigTest, PassesAreReplayedWhereAskedFor) {
  const auto choice = [](const char* graphs) {
    return Spec(std::string(kSmall) + "parallel { graphs: " + graphs + " }\n").graphs;
  };
  EXPECT_EQ(Spec(kSmall).graphs, GraphChoice::kWhereTheyGain);
  EXPECT_EQ(choice("WHERE_THEY_GAIN"), GraphChoice::kWhereTheyGain);
  EXPECT_EQ(choice("WHERE_POSSIBLE"), GraphChoice::kWherePossible);
  EXPECT_EQ(choice("OFF"), GraphChoice::kOff);
}

TEST(ConfigTest, GradientsTravelAsTheyAreUnlessToldNarrower) {
  const auto with = [](const std::string& parallel) {
    return std::string(kSmall) + "parallel { " + parallel + " }\n";
  };
  for (const auto& [parallel, grad, wire] : std::vector<std::tuple<std::string, DType, DType>>{
           {"", DType::kF32, DType::kF32},
           {"wire_dtype: BF16", DType::kF32, DType::kBF16},
           {"grad_dtype: BF16", DType::kBF16, DType::kBF16}}) {
    const RunSpec spec = Spec(with(parallel));
    EXPECT_EQ(spec.grad_dtype, grad) << parallel;
    EXPECT_EQ(spec.wire_dtype, wire) << parallel;
  }
  EXPECT_THAT(Error(with("grad_dtype: BF16\n wire_dtype: F32")),
              ::testing::HasSubstr("parallel.wire_dtype = F32 is wider"));
}

}  // namespace
}  // namespace filigree

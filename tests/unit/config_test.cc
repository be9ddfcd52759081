#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <tuple>
#include <vector>

#include "data/manifest.h"
#include "trainer/config/run_config.h"
#include "trainer/schedule.h"

namespace filigree {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

// Six lines; what a test appends begins at line 7.
constexpr char kSmall[] = R"(name: "small"
model { layers: 2 width: 48 heads: 3 vocab_size: 257 }
data { train { glob: "a_*.bin" } validation: "v.bin" }
batch { seq_len: 32 tokens_per_step: 256 micro_batch_sequences: 4 }
sparsity { parameterisation: "block_sparse" sparsity: 0.75 }
phase { tokens: 5120 }
)";

KnownNames Known() {
  KnownNames known;
  known.parameterisations = {"dense", "masked", "block_sparse"};
  return known;
}

StatusOr<LoadedConfig> Parse(const std::string& text,
                             const std::vector<std::string>& overrides = {}) {
  return ParseRunConfig(text, "run.textproto", overrides, Known());
}

RunSpec Spec(const std::string& text, const std::vector<std::string>& overrides = {}) {
  auto loaded = Parse(text, overrides);
  EXPECT_TRUE(loaded.ok()) << loaded.status().message();
  return loaded.ok() ? loaded->spec : RunSpec{};
}

std::string Error(const std::string& text, const std::vector<std::string>& overrides = {}) {
  auto loaded = Parse(text, overrides);
  EXPECT_FALSE(loaded.ok());
  if (loaded.ok()) return "";
  EXPECT_EQ(loaded.status().exit_code(), 2);
  return loaded.status().message();
}

// The small configuration with `old_text` replaced.
std::string With(const std::string& old_text, const std::string& new_text) {
  std::string text = kSmall;
  const size_t at = text.find(old_text);
  EXPECT_NE(at, std::string::npos) << old_text;
  return text.replace(at, old_text.size(), new_text);
}

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
  n: 2
  m: 4
  transposable: false
  initialisation: SLTRAIN
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

TEST(ConfigTest, ReportsEveryProblemAtItsLine) {
  const std::string error = Error(R"(model {
  layers: -4
  width: 50 heads: 3 vocab_size: 257
}
batch { seq_len: 32
  token_per_step: 256
}
data { train { glob: "a" } }
optimizer { beta1: 1 clip_norm: nan }
schedule { shape: COSIN
  lr: -1 warmup_steps: 1 warmup_fraction: 0.5 }
sparsity { parameterisation: "block" sparsity: 1
  distribution: "ERK" }
parallel { zero_stage: 2 ranks: two }
checkpoint { keep_last: -1 }
phase { steps: 5 tokens: 10 }
phase { })");
  std::vector<std::string> lines;
  std::istringstream stream(error);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  EXPECT_THAT(
      lines,
      ElementsAre(
          "run.textproto:2: model.layers must be positive, is -4",
          "run.textproto:3: model.heads = 3 does not divide model.width = 50; change one of them "
          "or set model.head_size",
          "run.textproto:6: unknown field \"token_per_step\" in BatchConfig; did you mean "
          "\"tokens_per_step\"? Known names are seq_len, tokens_per_step, micro_batch_sequences",
          "run.textproto:9: optimizer.beta1 must lie in [0, 1), is 1",
          "run.textproto:9: optimizer.clip_norm must not be negative, is nan",
          "run.textproto:10: unknown value \"COSIN\" of shape; did you mean \"COSINE\"? Known "
          "names are COSINE, LINEAR, CONSTANT, WSD",
          "run.textproto:11: schedule.lr must not be negative, is -1",
          "run.textproto:11: schedule.warmup_fraction and schedule.warmup_steps are both given; "
          "give at most one of them",
          "run.textproto:12: sparsity[0].sparsity must lie in [0, 1), is 1",
          "run.textproto:12: unknown parameterisation \"block\"; did you mean \"block_sparse\"? "
          "Known names are dense, masked, block_sparse",
          "run.textproto:13: unknown distribution \"ERK\"; known names are uniform",
          "run.textproto:14: Expected integer, got: two",
          "run.textproto:15: checkpoint.keep_last must not be negative, is -1",
          "run.textproto:16: phase \"phase_1\" gives both of tokens and steps; give exactly one of "
          "them",
          "run.textproto:17: phase \"phase_2\" gives neither of tokens and steps; give exactly one "
          "of them"));
}

TEST(ConfigTest, BrokenSyntaxIsReportedWithoutItsConsequences) {
  EXPECT_EQ(Error("model { layers: -2\n"),
            "run.textproto:2: the text ends inside a message; is a } missing?");
  EXPECT_EQ(Error("model { layers: two }\n\nbatch ] }"),
            "run.textproto:1: Expected integer, got: two\n"
            "run.textproto:3: Expected \"{\", found \"]\".");
}

struct BadCase {
  const char* old_text;
  const char* new_text;
  const char* message;
};

TEST(ConfigTest, SemanticProblems) {
  const BadCase cases[] = {
      {"heads: 3", "heads: 4 kv_heads: 3",
       ":2: model.heads = 4 is not a multiple of model.kv_heads = 3"},
      {"heads: 3", "heads: 3 head_size: 15", ":2: model.head_size = 15 is odd"},
      {"width: 48 heads: 3", "width: 45 heads: 3", ":2: model.head_size = 15 is odd"},
      {"heads: 3", "heads: 3 max_positions: 16",
       ":4: batch.seq_len = 32 is beyond model.max_positions = 16"},
      {"heads: 3", "heads: 3 padded_vocab_size: 256",
       ":2: model.padded_vocab_size = 256 is below the vocabulary of 257"},
      {"layers: 2", "family: GPT2 layers: 2 kv_heads: 1",
       ":2: model.kv_heads differs from model.heads"},
      {"layers: 2", "family: GPT2 layers: 2 head_size: 8",
       ":2: model.head_size times model.heads must be model.width"},
      {"layers: 2", "family: GPT2 layers: 2 gate_activation: IDENTITY",
       ":2: model.gate_activation is llama's; the GPT2 family has no gate"},
      {"layers: 2 ", "", ":2: model.layers is not set"},
      {" vocab_size: 257", "", ":2: model.vocab_size is not set and no data.prepared gives it"},
      {"train { glob: \"a_*.bin\" }", "", ":3: data.train is missing"},
      {"glob: \"a_*.bin\"", "weight: 1", ":3: data.train[0] has no glob"},
      {"glob: \"a_*.bin\"", "glob: \"a\" weight: 0",
       ":3: data.train[0].weight must be positive, is 0"},
      {"validation", "loss_after_token: 257 validation",
       ":3: data.loss_after_token = 257 is beyond the vocabulary of 257 tokens"},
      {"validation", "layout: ONE_DOCUMENT_PER_ROW validation",
       ":3: data.layout = ONE_DOCUMENT_PER_ROW needs data.delimiter_token"},
      {"validation", "shuffle: maybe validation", ":3: shuffle must be true or false, is maybe"},
      {"tokens_per_step: 256", "tokens_per_step: 250",
       ":4: batch.tokens_per_step = 250 is no multiple of batch.seq_len = 32; the nearest that "
       "work are 224 and 256"},
      {"seq_len: 32", "seq_len: 0", ":4: batch.seq_len must be positive, is 0"},
      {"block_sparse", "dense", ":5: a dense parameterisation has no zeros"},
      {"tokens: 5120", "tokens: 5000",
       ":6: the phase's tokens = 5000 are no multiple of batch.tokens_per_step = 256; the nearest "
       "that work are 4864 and 5120"},
      {"tokens: 5120", "tokens: 100", "the nearest that works is 256"},
      {"tokens: 5120", "steps: 0", ":6: phase[0].steps must be positive, is 0"},
      {"tokens: 5120", "steps: 5 schedule { warmup_steps: 6 }",
       ":6: schedule.warmup_steps = 6 is longer than the phase of 5 steps"},
      {"tokens: 5120", "steps: 5 schedule { shape: WSD wsd_decay_fraction: 1 warmup_steps: 1 }",
       ":6: schedule.wsd_decay_fraction and the warm-up together are longer than the phase"},
      {"phase { tokens: 5120 }", "", "run.textproto: the run has no phase"},
      {"name: \"small\"", "name: 5", ":1: Expected string, got: 5"},
      {"name: \"small\"", "seed: -1", ":1: Expected integer, got: -"},
      {"name: \"small\"", "log { every_steps: 0 }", ":1: log.every_steps must be positive, is 0"},
  };
  for (const BadCase& bad : cases) {
    const std::string error = Error(With(bad.old_text, bad.new_text));
    EXPECT_THAT(error, HasSubstr(bad.message));
    EXPECT_EQ(error.find('\n'), std::string::npos) << "one problem, one line: " << error;
  }
}

TEST(ConfigTest, OverridesAreNamedInErrors) {
  EXPECT_EQ(Error(kSmall, {"seed: 1", "schedule { lr: -2 }"}),
            "--override 2: schedule.lr must not be negative, is -2");
  EXPECT_EQ(Error(kSmall, {"phase { steps: 0 }"}),
            "--override 1: phase[0].steps must be positive, is 0");
  EXPECT_EQ(
      Error(With("tokens: 5120", "tokens: 5120 moments: KEEP"), {"phase { name: \"new\" }"}),
      "--override 1: phase \"new\" gives neither of tokens and steps; give exactly one of them");
}

TEST(ConfigTest, ADefaultThatPhasesShareIsReportedOnce) {
  const std::string error = Error(With("seq_len: 32", "seq_len: 33") + "phase { steps: 1 }");
  EXPECT_THAT(error, HasSubstr(":4: batch.tokens_per_step = 256 is no multiple"));
  EXPECT_EQ(error.find('\n'), std::string::npos) << error;
}

class PreparedDataTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = ::testing::TempDir() + "filigree_config_prepared";
    std::filesystem::create_directories(directory_);
    Manifest manifest;
    manifest.tokenizer.vocab_size = 300;
    manifest.tokenizer.delimiter_id = 256;
    std::ofstream(directory_ + "/manifest.json") << ManifestToJson(manifest);
    text_ = "model { layers: 1 width: 8 heads: 2 }\ndata { prepared: \"" + directory_ +
            "\" }\nphase { tokens: 524288 }\n";
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::string directory_, text_;
};

TEST_F(PreparedDataTest, GivesVocabularyAndShards) {
  const RunSpec spec = Spec(text_);
  EXPECT_EQ(spec.model.vocab_size, 300);
  EXPECT_EQ(spec.model.padded_vocab_size, 320);
  EXPECT_EQ(spec.phases[0].data.train[0].glob, directory_ + "/train_*.bin");
  EXPECT_EQ(spec.phases[0].data.validation, directory_ + "/val_*.bin");
}

TEST_F(PreparedDataTest, EffectiveTextNeedsNoManifest) {
  auto loaded = Parse(text_, {"data { layout: ONE_DOCUMENT_PER_ROW }"});
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_EQ(loaded->spec.phases[0].data.delimiter_token, 256);
  std::filesystem::remove(directory_ + "/manifest.json");
  auto again = Parse(loaded->effective_text);
  ASSERT_TRUE(again.ok()) << again.status().message();
  EXPECT_EQ(again->effective_text, loaded->effective_text);
  EXPECT_EQ(again->spec.phases[0].data.delimiter_token, 256);
}

TEST_F(PreparedDataTest, AMissingManifestIsReportedAtTheField) {
  std::filesystem::remove(directory_ + "/manifest.json");
  const std::string error = Error(text_);
  EXPECT_THAT(error, ::testing::StartsWith("run.textproto:2: "));
  EXPECT_THAT(error, HasSubstr("manifest.json"));
  EXPECT_THAT(error, HasSubstr("filigree prepare"));
}

TEST_F(PreparedDataTest, APhaseWithItsOwnDirectoryTakesItsOwnShards) {
  const RunSpec spec =
      Spec(text_, {"model { vocab_size: 300 } phase { steps: 1 data { prepared: \"x\" } }"});
  EXPECT_EQ(spec.phases[0].data.train[0].glob, "x/train_*.bin");
}

TEST(ConfigTest, AMissingFileIsInvalidInput) {
  auto loaded = LoadRunConfig("no/such.textproto", {}, Known());
  ASSERT_FALSE(loaded.ok());
  EXPECT_EQ(loaded.status().exit_code(), 2);
  EXPECT_THAT(loaded.status().message(), HasSubstr("no/such.textproto"));
}

ScheduleSpec Schedule(ScheduleShape shape, int64_t warmup_steps) {
  ScheduleSpec schedule;
  schedule.lr = 2.0;
  schedule.shape = shape;
  schedule.warmup_steps = warmup_steps;
  schedule.final_lr_fraction = 0.25;
  schedule.wsd_decay_fraction = 0.5;
  return schedule;
}

TEST(ScheduleTest, WarmsUpToThePeak) {
  for (ScheduleShape shape : {ScheduleShape::kCosine, ScheduleShape::kLinear,
                              ScheduleShape::kConstant, ScheduleShape::kWsd}) {
    const ScheduleSpec schedule = Schedule(shape, 4);
    EXPECT_EQ(LearningRate(schedule, 0, 100), 0.5);
    EXPECT_EQ(LearningRate(schedule, 1, 100), 1.0);
    EXPECT_EQ(LearningRate(schedule, 3, 100), 2.0);
  }
}

TEST(ScheduleTest, FallsAsItsShapeSays) {
  // 4 steps of warm-up, 8 of decay: step 7 is half way, step 11 the last.
  const ScheduleSpec cosine = Schedule(ScheduleShape::kCosine, 4);
  EXPECT_DOUBLE_EQ(LearningRate(cosine, 7, 12), 2.0 * (0.25 + 0.75 * 0.5));
  EXPECT_DOUBLE_EQ(LearningRate(cosine, 5, 12), 2.0 * (0.25 + 0.75 * 0.853553390593273762));
  EXPECT_DOUBLE_EQ(LearningRate(cosine, 11, 12), 0.5);
  const ScheduleSpec linear = Schedule(ScheduleShape::kLinear, 4);
  EXPECT_DOUBLE_EQ(LearningRate(linear, 5, 12), 2.0 * (0.25 + 0.75 * 0.75));
  EXPECT_DOUBLE_EQ(LearningRate(linear, 11, 12), 0.5);
  const ScheduleSpec constant = Schedule(ScheduleShape::kConstant, 0);
  EXPECT_EQ(LearningRate(constant, 0, 12), 2.0);
  EXPECT_EQ(LearningRate(constant, 11, 12), 2.0);
}

TEST(ScheduleTest, WsdIsStableAndThenDecays) {
  const ScheduleSpec wsd = Schedule(ScheduleShape::kWsd, 2);
  EXPECT_EQ(LearningRate(wsd, 2, 12), 2.0);
  EXPECT_EQ(LearningRate(wsd, 5, 12), 2.0);  // decay covers the last 6 of 12 steps
  EXPECT_DOUBLE_EQ(LearningRate(wsd, 6, 12), 2.0 * (0.25 + 0.75 * 5 / 6));
  EXPECT_DOUBLE_EQ(LearningRate(wsd, 11, 12), 0.5);
}

TEST(ScheduleTest, AWarmUpAsLongAsThePhaseNeverFalls) {
  const ScheduleSpec cosine = Schedule(ScheduleShape::kCosine, 3);
  EXPECT_EQ(LearningRate(cosine, 2, 3), 2.0);
}

}  // namespace
}  // namespace filigree

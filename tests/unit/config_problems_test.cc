// What is wrong with a configuration: every problem at once, each at its line.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <tuple>
#include <vector>

#include "tests/unit/config_testing.h"

namespace filigree {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

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
      {"layers: 2", "layers: 2 gelu_derivative_bits: 8",
       ":2: model.gelu_derivative_bits is the GPT2 family's; llama has no GELU"},
      {"layers: 2", "family: GPT2 layers: 2 gelu_derivative_bits: 4",
       ":2: model.gelu_derivative_bits = 4 is not known; give 8, or 0 to keep GELU's input"},
      {"layers: 2", "family: GPT2 layers: 2 recompute: ACTIVATIONS gelu_derivative_bits: 8",
       ":2: model.gelu_derivative_bits keeps no input from which recompute: ACTIVATIONS"},
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

TEST(ConfigTest, AMissingFileIsInvalidInput) {
  auto loaded = LoadRunConfig("no/such.textproto", {}, Known());
  ASSERT_FALSE(loaded.ok());
  EXPECT_EQ(loaded.status().exit_code(), 2);
  EXPECT_THAT(loaded.status().message(), HasSubstr("no/such.textproto"));
}

}  // namespace
}  // namespace filigree

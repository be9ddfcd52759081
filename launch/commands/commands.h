// The subcommands of `filigree`, one file each. main.cc parses the command line into these structs;
// a command returns a Status whose exit code follows the contract, and prints its result itself.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/base/status.h"

namespace filigree {

// Text to token shards, tokenizer and manifest.
struct PrepareCommand {
  std::vector<std::string> inputs;
  std::string tokenizer, out;
  double val_fraction = 0.01;
  int64_t shard_tokens = 100'000'000;
  std::string json_key = "text";
  uint64_t seed = 0;
  Status Run() const;
};

// Memory, operations and traffic of a run before it starts.
struct PlanCommand {
  std::string config;
  std::vector<std::string> overrides;
  int ranks = 1;
  // "auto", "cpu" or "cuda"; empty: the config's. And of a GPU that need not be here its kind
  // (GpuCards; empty: none is named) and memory (0: the kind's).
  std::string device, card;
  double memory_gb = 0;
  // The scaling model: measured milliseconds of a step on one GPU; 0: without it.
  double step_ms = 0;
  double jitter_percent = 1;
  // Replace those of parallel.link.
  std::optional<double> link_gbps, link_latency_us, node_gbps, node_latency_us;
  std::optional<int> gpus_per_node;
  bool json = false;
  Status Run() const;
};

struct TrainCommand {
  std::string config, out, resume = "auto";
  std::vector<std::string> overrides;
  Status Run() const;
};

// Loss and perplexity of a run, checkpoint or Hugging Face directory.
struct EvalCommand {
  std::string what, data, logits;
  int64_t seq_len = 0, tokens = 0, sequences = 8;
  int32_t delimiter_token = -1;
  std::string bare_dtype, formula = "token-mean";
  bool json = false;
  Status Run() const;
};

struct GenerateCommand {
  std::string what, prompt;
  int64_t tokens = 100, top_k = 40;
  double temperature = 0.8;
  uint64_t seed = 0;
  Status Run() const;
};

struct ExportCommand {
  std::string what, out, dtype = "bf16", format = "huggingface";
  bool padded = false;
  Status Run() const;
};

struct ImportCommand {
  std::string hf_dir, out;
  Status Run() const;
};

// The average of checkpoints that share their layouts.
struct SoupCommand {
  std::vector<std::string> checkpoints;
  std::string out;
  Status Run() const;
};

struct InspectCommand {
  std::string path;
  Status Run() const;
};

struct ReportCommand {
  std::vector<std::string> runs;
  std::string out;
  Status Run() const;
};

// Whole training steps of a config's first phase on random tokens.
struct BenchStepCommand {
  std::string config;
  std::vector<std::string> overrides;
  int steps = 20, warmup = 5;
  bool json = false;
  Status Run() const;
};

// The products of blocked weights against dense ones.
struct BenchKernelsCommand {
  std::vector<std::string> shapes = {"6144x2048", "8192x2048", "2048x8192", "4096x4096"};
  std::vector<std::string> blocks = {"128x128"};
  std::vector<double> sparsities = {50, 75, 90};  // percent
  std::vector<int64_t> tokens = {16384};
  std::string layout = "random";
  int repeats = 20;
  uint64_t seed = 1;
  bool peers = false;  // cuSPARSE's and n_m's too
  bool json = false;
  Status Run() const;
};

// The exchange of a config's first phase without its compute, to test a fabric.
struct BenchExchangeCommand {
  std::string config;
  std::vector<std::string> overrides;
  int steps = 20, warmup = 5;
  bool json = false;
  Status Run() const;
};

}  // namespace filigree

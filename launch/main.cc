// filigree: one binary, a subcommand for each thing a user does. Parses, runs, prints one message
// on error.
#include <CLI/CLI.hpp>
#include <functional>

#include "comm/bootstrap.h"
#include "kernels/planned/gpu_sizes.h"
#include "launch/commands/commands.h"
#include "launch/commands/session.h"

namespace filigree {
namespace {

constexpr int kUsageError = 2;
constexpr int kMostRanks = 1 << 20;  // that a plan is asked for

// Each command binds its options and says what to run when it was chosen.
using Runner = std::function<Status()>;

void AddPrepare(CLI::App& app, PrepareCommand& c, Runner& run) {
  CLI::App* sub = app.add_subcommand("prepare", "Turn text into token shards");
  sub->add_option("--input", c.inputs, "Text or jsonl files (also .gz, .zst), directories or globs")
      ->required();
  sub->add_option("--tokenizer", c.tokenizer,
                  "byte, sentencepiece:MODEL or train-sentencepiece:VOCAB_SIZE")
      ->required();
  sub->add_option("--out", c.out, "Directory to make")->required();
  sub->add_option("--val-fraction", c.val_fraction, "Share of the text held out")
      ->capture_default_str();
  sub->add_option("--shard-tokens", c.shard_tokens, "Tokens a shard")->capture_default_str();
  sub->add_option("--json-key", c.json_key, "The text's field in jsonl")->capture_default_str();
  sub->add_option("--seed", c.seed, "Decides which documents are held out")->capture_default_str();
  sub->callback([&] { run = [&] { return OnRankZero([&] { return c.Run(); }); }; });
}

void AddPlan(CLI::App& app, PlanCommand& c, Runner& run) {
  CLI::App* sub = app.add_subcommand("plan", "Parameters, memory, operations and traffic of a run");
  sub->add_option("config", c.config, "A configs/*.textproto")->required();
  sub->add_option("--override", c.overrides, "Text format merged over the config");
  sub->add_option("--ranks", c.ranks, "Number of ranks")
      ->check(CLI::Range(1, kMostRanks))
      ->capture_default_str();
  sub->add_option("--device", c.device,
                  "auto, cpu or cuda, instead of the config's parallel.device; cuda needs no GPU "
                  "here")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  std::vector<std::string> cards;
  for (const NamedGpuCard& card : GpuCards()) cards.emplace_back(card.key);
  sub->add_option("--card", c.card,
                  "Plan for a GPU of this kind, whatever is here; default: the one that is here, "
                  "else " +
                      cards.front())
      ->check(CLI::IsMember(cards));
  sub->add_option("--memory-gb", c.memory_gb, "Memory of a GPU that is not here, in 10^9 bytes")
      ->check(CLI::PositiveNumber);
  sub->add_option("--step-ms", c.step_ms,
                  "Also predict step time and efficiency on 8 to 4096 GPUs, each of which takes so "
                  "long a step without exchange (`bench step` on one GPU measures it)")
      ->check(CLI::PositiveNumber);
  sub->add_option("--link-gbps", c.link_gbps,
                  "Gbit/s of a GPU's network link, as reached (`bench exchange` measures it); this "
                  "and the next four replace those of parallel.link")
      ->check(CLI::PositiveNumber);
  sub->add_option("--link-latency-us", c.link_latency_us, "Microseconds of a hop between hosts")
      ->check(CLI::NonNegativeNumber);
  sub->add_option("--node-gbps", c.node_gbps, "Gbit/s between neighbours inside a host")
      ->check(CLI::PositiveNumber);
  sub->add_option("--node-latency-us", c.node_latency_us, "Microseconds of a hop inside a host")
      ->check(CLI::NonNegativeNumber);
  sub->add_option("--gpus-per-node", c.gpus_per_node, "Ranks of one host")
      ->check(CLI::PositiveNumber);
  sub->add_option("--jitter-percent", c.jitter_percent,
                  "By how much a host's step times vary (standard deviation over mean)")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  sub->add_flag("--json", c.json, "Print JSON");
  sub->callback([&] { run = [&] { return c.Run(); }; });
}

void AddTrain(CLI::App& app, TrainCommand& c, Runner& run) {
  CLI::App* sub = app.add_subcommand("train", "Train; several ranks under mpirun");
  sub->add_option("config", c.config, "A configs/*.textproto")->required();
  sub->add_option("--out", c.out, "Run directory")->required();
  sub->add_option("--override", c.overrides, "Text format merged over the config");
  sub->add_option("--resume", c.resume, "auto, none, or a checkpoint's path")
      ->capture_default_str();
  sub->callback([&] { run = [&] { return c.Run(); }; });
}

void AddEval(CLI::App& app, EvalCommand& c, Runner& run) {
  CLI::App* sub = app.add_subcommand("eval", "Loss and perplexity");
  sub->add_option("what", c.what, "A run, a checkpoint or a Hugging Face directory")->required();
  sub->add_option("--data", c.data, "Glob of token shards")->required();
  sub->add_option("--seq-len", c.seq_len, "Window; default: the run's")->check(CLI::PositiveNumber);
  sub->add_option("--tokens", c.tokens, "At most this many; default: all")
      ->check(CLI::PositiveNumber);
  sub->add_option("--bare-dtype", c.bare_dtype, "U16 or U32, for nanoGPT's headerless shards")
      ->check(CLI::IsMember({"U16", "U32"}));
  sub->add_option("--sequences", c.sequences, "Rows of one batch")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  sub->add_option("--delimiter-token", c.delimiter_token,
                  "One document a row, ended by this token, which also pads; default: packed rows");
  sub->add_option("--formula", c.formula,
                  "sltrain: mean of the batches' means times n / (n + 1), as its scripts print")
      ->check(CLI::IsMember({"token-mean", "sltrain"}))
      ->capture_default_str();
  sub->add_option("--logits", c.logits,
                  "Also write the first window's tokens and logits (safetensors)");
  sub->add_flag("--json", c.json, "Print JSON");
  sub->callback([&] { run = [&] { return c.Run(); }; });
}

void AddGenerate(CLI::App& app, GenerateCommand& c, Runner& run) {
  CLI::App* sub = app.add_subcommand("generate", "Continue a prompt");
  sub->add_option("what", c.what, "A run, a checkpoint or a Hugging Face directory")->required();
  sub->add_option("--prompt", c.prompt, "Text to continue")->required();
  sub->add_option("--tokens", c.tokens, "Tokens to add at most")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  sub->add_option("--seed", c.seed, "Of the sampling")->capture_default_str();
  sub->add_option("--temperature", c.temperature, "0: the likeliest token")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  sub->add_option("--top-k", c.top_k, "0: the whole vocabulary")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  sub->callback([&] { run = [&] { return c.Run(); }; });
}

void AddExport(CLI::App& app, ExportCommand& c, Runner& run) {
  CLI::App* sub = app.add_subcommand("export", "Write a dense Hugging Face checkpoint");
  sub->add_option("what", c.what, "A run or a checkpoint")->required();
  sub->add_option("--out", c.out, "Directory to make")->required();
  sub->add_option("--dtype", c.dtype, "bf16 or f32")
      ->check(CLI::IsMember({"bf16", "f32"}))
      ->capture_default_str();
  sub->add_flag("--padded", c.padded,
                "Fill layers that pruning left of different sizes up with zeros; same logits");
  sub->add_option("--format", c.format,
                  "sltrain: factors, values and indices as SLTrain's own trainer stores them")
      ->check(CLI::IsMember({"huggingface", "sltrain"}))
      ->capture_default_str();
  sub->callback([&] { run = [&] { return OnRankZero([&] { return c.Run(); }); }; });
}

void AddImport(CLI::App& app, ImportCommand& c, Runner& run) {
  CLI::App* sub = app.add_subcommand("import", "Make a checkpoint from a Hugging Face directory");
  sub->add_option("hf_dir", c.hf_dir, "A llama or GPT-2 directory, or SLTrain's own checkpoint")
      ->required();
  sub->add_option("--out", c.out, "Checkpoint directory to make")->required();
  sub->callback([&] { run = [&] { return OnRankZero([&] { return c.Run(); }); }; });
}

void AddSoup(CLI::App& app, SoupCommand& c, Runner& run) {
  CLI::App* sub = app.add_subcommand("soup", "Average checkpoints that share their layouts");
  sub->add_option("checkpoints", c.checkpoints, "Runs or checkpoints, at least two")->required();
  sub->add_option("--out", c.out, "Checkpoint directory to make")->required();
  sub->callback([&] { run = [&] { return OnRankZero([&] { return c.Run(); }); }; });
}

void AddInspect(CLI::App& app, InspectCommand& c, Runner& run) {
  CLI::App* sub =
      app.add_subcommand("inspect", "What a checkpoint, shard or safetensors file holds");
  sub->add_option("path", c.path, "A run, checkpoint, token shard or .safetensors file")
      ->required();
  sub->callback([&] { run = [&] { return OnRankZero([&] { return c.Run(); }); }; });
}

void AddReport(CLI::App& app, ReportCommand& c, Runner& run) {
  CLI::App* sub = app.add_subcommand("report", "One HTML page about one or several runs");
  sub->add_option("runs", c.runs, "Run directories")->required();
  sub->add_option("--out", c.out, "The HTML file to write")->required();
  sub->callback([&] { run = [&] { return OnRankZero([&] { return c.Run(); }); }; });
}

// The options that benchmarks of a config share.
template <typename Command>
void AddTimedConfig(CLI::App* sub, Command& c, Runner& run) {
  sub->add_option("config", c.config, "A textproto; its first phase is timed")->required();
  sub->add_option("--override", c.overrides, "Text format merged over the config");
  sub->add_option("--steps", c.steps, "Steps timed")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  sub->add_option("--warmup", c.warmup, "Steps before them")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  sub->add_flag("--json", c.json, "Print JSON");
  sub->callback([&] { run = [&] { return c.Run(); }; });
}

void AddBenchKernels(CLI::App* bench, BenchKernelsCommand& c, Runner& run) {
  CLI::App* sub = bench->add_subcommand(
      "kernels", "Times the products of blocked weights against dense ones, with their roofs");
  sub->add_option("--shape", c.shapes, "Weights, OUTxIN,...")
      ->delimiter(',')
      ->capture_default_str();
  sub->add_option("--block", c.blocks, "Blocks, OUTxIN,...")->delimiter(',')->capture_default_str();
  sub->add_option("--sparsity", c.sparsities, "Percentages of zeros")
      ->delimiter(',')
      ->check(CLI::Range(0.0, 99.999))
      ->capture_default_str();
  sub->add_option("--tokens", c.tokens, "Token counts")
      ->delimiter(',')
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  sub->add_option("--layout", c.layout,
                  "random: blocks fall where they may; balanced: as many in every row and column")
      ->check(CLI::IsMember({"random", "balanced"}))
      ->capture_default_str();
  sub->add_option("--repeats", c.repeats, "Rounds timed")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  sub->add_option("--seed", c.seed, "Of the layouts")->capture_default_str();
  sub->add_flag("--peers", c.peers,
                "Also cuSPARSE's products, BSR and CSR, and n_m's of a 2:4 weight (on a GPU; slow)");
  sub->add_flag("--json", c.json, "Print JSON");
  sub->callback([&] { run = [&] { return c.Run(); }; });
}

void AddBench(CLI::App& app, BenchStepCommand& step, BenchExchangeCommand& exchange,
              BenchKernelsCommand& kernels, Runner& run) {
  CLI::App* bench = app.add_subcommand("bench", "The project's own benchmarks");
  bench->require_subcommand(1);
  AddTimedConfig(bench->add_subcommand("step", "Times training steps on random tokens"), step, run);
  AddTimedConfig(bench->add_subcommand(
                     "exchange",
                     "Replays what a training step sends, without its compute, on the ranks it is "
                     "started with (mpirun, srun, torchrun): tests and measures a fabric"),
                 exchange, run);
  AddBenchKernels(bench, kernels, run);
}

int Main(int argc, char** argv) {
  CLI::App app("Filigree pretrains sparse language models on many GPUs (or CPU ranks).",
               "filigree");
  app.require_subcommand(1);
  Runner run;
  PrepareCommand prepare;
  PlanCommand plan;
  TrainCommand train;
  EvalCommand eval;
  GenerateCommand generate;
  ExportCommand export_;
  ImportCommand import_;
  SoupCommand soup;
  InspectCommand inspect;
  ReportCommand report;
  BenchStepCommand bench_step;
  BenchExchangeCommand bench_exchange;
  BenchKernelsCommand bench_kernels;
  AddPrepare(app, prepare, run);
  AddPlan(app, plan, run);
  AddTrain(app, train, run);
  AddEval(app, eval, run);
  AddGenerate(app, generate, run);
  AddExport(app, export_, run);
  AddImport(app, import_, run);
  AddSoup(app, soup, run);
  AddInspect(app, inspect, run);
  AddReport(app, report, run);
  AddBench(app, bench_step, bench_exchange, bench_kernels, run);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    // A launcher kills all ranks as soon as one leaves with an error: rank 0 speaks for all.
    if (LaunchedRank() != 0) return 0;
    return app.exit(error) == 0 ? 0 : kUsageError;
  }
  return Tell(run()).exit_code();
}

}  // namespace
}  // namespace filigree

int main(int argc, char** argv) { return filigree::Main(argc, argv); }

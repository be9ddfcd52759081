// The resolved configuration as plain structs: complete, validated, every default filled in.
//
// trainer/config makes a RunSpec from run.proto; everything else in trainer/ reads these structs
// and never sees protobuf.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "comm/link_model.h"
#include "comm/state_format.h"
#include "kernels/base/dtype.h"

namespace filigree {

enum class ModelFamily { kLlama, kGpt2 };
enum class GateActivation { kSilu, kIdentity };
enum class Recompute { kNone, kActivations, kLayer };

// The sizes of one layer where layers differ: those of a model that was, or is being, pruned.
struct LayerShape {
  int64_t heads = 0, kv_heads = 0, feed_forward = 0;

  bool operator==(const LayerShape&) const = default;
};

// A decoder-only transformer. Letters as in ARCHITECTURE.md.
struct ModelSpec {
  ModelFamily family = ModelFamily::kLlama;
  int64_t layers = 0;             // L
  int64_t width = 0;              // D
  int64_t heads = 0;              // H
  int64_t kv_heads = 0;           // K
  int64_t head_size = 0;          // E
  int64_t feed_forward = 0;       // F
  int64_t vocab_size = 0;         // V
  int64_t padded_vocab_size = 0;  // Vp >= V
  int64_t max_positions = 0;
  bool tied_head = false;
  double rope_theta = 10000;
  double norm_epsilon = 1e-6;
  double init_std = 0.02;
  Recompute recompute = Recompute::kNone;
  // What is kept of GELU for its gradient: its input, or (8) its derivative in codes of a byte.
  int gelu_derivative_bits = 0;
  GateActivation gate_activation = GateActivation::kSilu;
  // RMSNorm's divisor: the width before stem channels were removed; 0: width.
  int64_t norm_width = 0;
  // One a layer where they differ; else empty, and each layer has heads, kv_heads, feed_forward,
  // which otherwise hold the largest of each.
  std::vector<LayerShape> layer_shapes = {};

  LayerShape ShapeOf(int64_t layer) const {
    if (layer_shapes.empty()) return {heads, kv_heads, feed_forward};
    return layer_shapes[static_cast<size_t>(layer)];
  }
  int64_t norm_divisor() const { return norm_width > 0 ? norm_width : width; }

  bool operator==(const ModelSpec&) const = default;
};

enum class Clock { kFraction, kSteps, kTokens, kCompute };
enum class SparsityCurve { kConstant, kCubic, kGeometric, kLinear, kPoints };
enum class DropCurve { kConstant, kCosine };

struct SparsityPoint {
  double at = 0;  // in units of the clock
  double sparsity = 0;
  bool operator==(const SparsityPoint&) const = default;
};

enum class SparsePart { kUnstructured, kBlocks };
enum class FactorStart { kPublished, kLost };
enum class LowRankCompute { kAuto, kRebuild, kFactored };

// How the weights that match are stored and computed, and how their topology changes
// (trainer/topology). Fields are explained in configs/run.proto.
struct SparsitySpec {
  std::vector<std::string> include = {}, exclude = {};  // globs over parameter names
  std::string parameterisation = "dense";
  double sparsity = 0;
  int64_t block_out = 32, block_in = 32;
  std::string rule = "static_random";
  std::string distribution = "uniform";
  std::string criterion = "magnitude";
  double initial_sparsity = 0;
  SparsityCurve curve = SparsityCurve::kConstant;
  Clock clock = Clock::kFraction;
  double begin = 0, end = 1;
  std::vector<SparsityPoint> points = {};
  int64_t update_interval = 100;  // steps
  double drop_fraction = 0, final_drop_fraction = 0;
  DropCurve drop_curve = DropCurve::kCosine;
  double drop_end = 0.75;  // fraction of the phase's steps
  double min_density = 0, min_share = 0;
  int64_t growth_ramp_steps = 100;
  // Parameterisations with low-rank factors; explained in configs/run.proto.
  int64_t rank = 0;
  double alpha = 0;  // 0: rank
  SparsePart sparse_part = SparsePart::kUnstructured;
  LowRankCompute compute = LowRankCompute::kAuto;
  bool keep_rebuilt = false;
  FactorStart factor_start = FactorStart::kPublished;
  // n_m.
  int64_t n = 2, m = 4;
  bool transposable = false;
  // The phase's as configured, also where ranks have fewer (micro_batches.h): what kAuto counts with,
  // so that the form, and with it the bits, do not depend on the number of ranks.
  int64_t micro_batch_tokens = 0;

  double low_rank_scale() const { return alpha == 0 ? 1.0 : alpha / static_cast<double>(rank); }

  bool operator==(const SparsitySpec&) const = default;
};

enum class UnitKind { kAttention, kFeedForward, kStem };
inline constexpr int kUnitKinds = 3;

// Structured pruning of units (trainer/pruning) while the phase trains. Fields are explained in
// configs/run.proto.
struct PruningSpec {
  struct Kind {
    bool enabled = true;
    int64_t minimum = 1;    // units that a set keeps
    int64_t alignment = 1;  // compacted sizes are multiples
    bool operator==(const Kind&) const = default;
  };
  enum class Removal { kAtOnce, kProgressive };

  int64_t target_parameters = 0;
  std::string criterion = "taylor_second";
  SparsityCurve curve = SparsityCurve::kLinear;
  Clock clock = Clock::kFraction;
  double begin = 0.05, end = 0.75;
  int64_t interval = 1;         // steps between removals
  int64_t units_per_event = 0;  // at most; 0: as many as the ramp asks for
  std::vector<Kind> kinds = std::vector<Kind>(kUnitKinds);  // by UnitKind
  bool even_layers = true;
  Removal removal = Removal::kAtOnce;
  int64_t shrink_steps = 10;
  double smoothing = 0.9, outlier_factor = 3;
  bool update_remaining = true;
  double update_damping = 0.01;
  int64_t update_block = 128;
  double compact_share = 0.05;

  const Kind& of(UnitKind kind) const { return kinds[static_cast<size_t>(kind)]; }
  bool operator==(const PruningSpec&) const = default;
};

struct DataSourceSpec {
  std::string glob;
  double weight = 1;
};

struct DataSpec {
  enum class Layout { kPacked, kOneDocumentPerRow };
  enum class BareDtype { kNotBare, kU16, kU32 };
  std::vector<DataSourceSpec> train;
  std::string validation;  // glob; empty: none
  std::string prepared;    // directory with the tokenizer; empty: none
  BareDtype bare_dtype = BareDtype::kNotBare;
  Layout layout = Layout::kPacked;
  bool shuffle = true;
  int64_t loss_after_token = -1;
  int64_t delimiter_token = -1;
  int64_t padding_token = -1;
};

struct BatchSpec {
  int64_t seq_len = 0;                // S
  int64_t tokens_per_step = 0;        // over all ranks; a multiple of seq_len
  int64_t micro_batch_sequences = 0;  // B
  int64_t sequences_per_step() const { return tokens_per_step / seq_len; }
};

struct OptimizerSpec {
  double beta1 = 0.9, beta2 = 0.95, epsilon = 1e-8, weight_decay = 0.1, clip_norm = 1.0;
  StateFormat state = {};
  bool per_layer = false;  // updates while backward goes on
};

enum class ScheduleShape { kCosine, kLinear, kConstant, kWsd };

struct ScheduleSpec {
  double lr = 3e-4;
  ScheduleShape shape = ScheduleShape::kCosine;
  int64_t warmup_steps = 0;
  double final_lr_fraction = 0.1;
  double wsd_decay_fraction = 0.2;
};

// A frozen teacher beside the data; explained in configs/run.proto.
struct DistillationSpec {
  std::string teacher;  // directory
  double temperature = 2, alpha = 0.5;
  bool on() const { return !teacher.empty() && alpha > 0; }
};

enum class Moments { kFresh, kKeep };

struct PhaseSpec {
  std::string name;
  int64_t first_step = 0;  // steps are counted over the whole run, from 0
  int64_t steps = 0;
  Moments moments = Moments::kFresh;
  DataSpec data;
  BatchSpec batch;
  OptimizerSpec optimizer;
  ScheduleSpec schedule;
  std::vector<SparsitySpec> sparsity;
  int64_t rewind_step = -1;  // -1: none
  DistillationSpec distillation;
  std::optional<PruningSpec> pruning = {};
};

enum class DeviceChoice { kAuto, kCpu, kCuda };

// What an evaluation reports as the loss.
enum class LossFormula {
  kTokenMean,  // the mean over all tokens that count
  // What SLTrain's and GaLore's scripts print: per rank, the sum of the batches' means over the
  // number of batches plus one, averaged over ranks. Low by a factor of about n / (n + 1).
  kSltrain,
};

struct EvaluationSpec {
  int64_t every_steps = 250;
  int64_t tokens = 1048576;
  LossFormula formula = LossFormula::kTokenMean;
  std::vector<std::string> sample_prompts;
  int64_t sample_tokens = 40;
};

enum class GraphChoice { kOff, kWherePossible, kWhereTheyGain };

struct RunSpec {
  std::string name;
  uint64_t seed = 1234;
  std::string init_from;  // a model's directory; empty: initial values are drawn
  ModelSpec model;
  std::vector<PhaseSpec> phases;
  EvaluationSpec evaluation;
  int zero_stage = 1;
  double bucket_megabytes = 0;  // of gradients; 0: chosen (BucketBytes in training_state.h)
  LinkSpec link;
  DType grad_dtype = DType::kF32;  // of accumulation
  DType wire_dtype = DType::kF32;  // between ranks; never wider
  int cpu_threads = 0;
  int required_ranks = 0;
  bool deterministic = false;
  // Whether passes are recorded and replayed (ReplaysPasses in replayed_passes.h).
  GraphChoice graphs = GraphChoice::kOff;
  DeviceChoice device = DeviceChoice::kAuto;
  double timeout_seconds = 600;  // without progress; 0: no watchdog
  int64_t checkpoint_every_steps = 1000;
  int64_t checkpoint_keep_last = 3;
  int64_t log_every_steps = 10;
  bool tensorboard = true;
  double peak_tflops = 0;

  int64_t total_steps() const {
    return phases.empty() ? 0 : phases.back().first_step + phases.back().steps;
  }
  // The phase that performs step `step` (0-based); the last one for the step after the end.
  const PhaseSpec& PhaseOf(int64_t step) const;
  int PhaseIndexOf(int64_t step) const;
};

}  // namespace filigree

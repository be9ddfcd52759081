#include "trainer/config/to_spec.h"

#include <cmath>

namespace filigree::config {
namespace {

// The enums of spec.h list the schema's values in the same order.
static_assert(static_cast<int>(ModelFamily::kGpt2) == ModelConfig::GPT2);
static_assert(static_cast<int>(Recompute::kLayer) == ModelConfig::LAYER);
static_assert(static_cast<int>(GateActivation::kIdentity) == ModelConfig::IDENTITY);
static_assert(static_cast<int>(DataSpec::Layout::kOneDocumentPerRow) ==
              DataConfig::ONE_DOCUMENT_PER_ROW);
static_assert(static_cast<int>(DataSpec::BareDtype::kU32) == DataConfig::U32);
static_assert(static_cast<int>(ScheduleShape::kWsd) == ScheduleConfig::WSD);
static_assert(static_cast<int>(Moments::kKeep) == Phase::KEEP);
static_assert(static_cast<int>(DeviceChoice::kCuda) == ParallelConfig::CUDA);
static_assert(static_cast<int>(Clock::kCompute) == SparsityConfig::COMPUTE);
static_assert(static_cast<int>(SparsityCurve::kPoints) == SparsityConfig::POINTS);
static_assert(static_cast<int>(DropCurve::kCosine) == SparsityConfig::DROP_COSINE);
static_assert(static_cast<int>(PruningSpec::Removal::kProgressive) == PruningConfig::PROGRESSIVE);
static_assert(static_cast<int>(LossFormula::kSltrain) == EvaluationConfig::SLTRAIN);
static_assert(static_cast<int>(SparsePart::kBlocks) == SparsityConfig::BLOCKS);
static_assert(static_cast<int>(LowRankCompute::kFactored) == SparsityConfig::FACTORED);
static_assert(static_cast<int>(GraphChoice::kWhereTheyGain) == ParallelConfig::WHERE_THEY_GAIN);

std::vector<LayerShape> ToLayerShapes(const ModelConfig& config) {
  std::vector<LayerShape> shapes;
  for (const auto& shape : config.layer_shape()) {
    shapes.push_back({.heads = shape.heads(),
                      .kv_heads = shape.kv_heads(),
                      .feed_forward = shape.feed_forward()});
  }
  return shapes;
}

ModelSpec ToModelSpec(const ModelConfig& config) {
  return {.family = static_cast<ModelFamily>(config.family()),
          .layers = config.layers(),
          .width = config.width(),
          .heads = config.heads(),
          .kv_heads = config.kv_heads(),
          .head_size = config.head_size(),
          .feed_forward = config.feed_forward(),
          .vocab_size = config.vocab_size(),
          .padded_vocab_size = config.padded_vocab_size(),
          .max_positions = config.max_positions(),
          .tied_head = config.tied_head(),
          .rope_theta = config.rope_theta(),
          .norm_epsilon = config.norm_epsilon(),
          .init_std = config.init_std(),
          .recompute = static_cast<Recompute>(config.recompute()),
          .gelu_derivative_bits = config.gelu_derivative_bits(),
          .gate_activation = static_cast<GateActivation>(config.gate_activation()),
          .norm_width = config.norm_width(),
          .layer_shapes = ToLayerShapes(config)};
}

DataSpec ToDataSpec(const DataConfig& config) {
  DataSpec spec;
  for (const DataSource& source : config.train()) {
    spec.train.push_back({.glob = source.glob(), .weight = source.weight()});
  }
  spec.validation = config.validation();
  spec.prepared = config.prepared();
  spec.bare_dtype = static_cast<DataSpec::BareDtype>(config.bare_dtype());
  spec.layout = static_cast<DataSpec::Layout>(config.layout());
  spec.shuffle = config.shuffle();
  spec.loss_after_token = config.loss_after_token();
  spec.delimiter_token = config.delimiter_token();
  spec.padding_token = config.padding_token();
  return spec;
}

ScheduleSpec ToScheduleSpec(const ScheduleConfig& config, int64_t phase_steps) {
  const double fraction = config.warmup_fraction();
  return {.lr = config.lr(),
          .shape = static_cast<ScheduleShape>(config.shape()),
          .warmup_steps = config.has_warmup_steps()
                              ? config.warmup_steps()
                              : std::llround(fraction * static_cast<double>(phase_steps)),
          .final_lr_fraction = config.final_lr_fraction(),
          .wsd_decay_fraction = config.wsd_decay_fraction()};
}

SparsitySpec ToSparsitySpec(const SparsityConfig& config, const BatchConfig& batch) {
  SparsitySpec spec = {
      .include = {config.include().begin(), config.include().end()},
      .exclude = {config.exclude().begin(), config.exclude().end()},
      .parameterisation = config.parameterisation(),
      .sparsity = config.sparsity(),
      .block_out = config.block_out(),
      .block_in = config.block_in(),
      .rule = config.rule(),
      .distribution = config.distribution(),
      .criterion = config.criterion(),
      .initial_sparsity = config.initial_sparsity(),
      .curve = static_cast<SparsityCurve>(config.curve()),
      .clock = static_cast<Clock>(config.clock()),
      .begin = config.begin(),
      .end = config.end(),
      .update_interval = config.update_interval(),
      .drop_fraction = config.drop_fraction(),
      .final_drop_fraction = config.final_drop_fraction(),
      .drop_curve = static_cast<DropCurve>(config.drop_curve()),
      .drop_end = config.drop_end(),
      .min_density = config.min_density(),
      .min_share = config.min_share(),
      .growth_ramp_steps = config.growth_ramp_steps(),
      .rank = config.rank(),
      .alpha = config.alpha(),
      .sparse_part = static_cast<SparsePart>(config.sparse_part()),
      .compute = static_cast<LowRankCompute>(config.compute()),
      .keep_rebuilt = config.keep_rebuilt(),
      .factor_start = static_cast<FactorStart>(config.initialisation()),
      .n = config.n(),
      .m = config.m(),
      .transposable = config.transposable(),
      .micro_batch_tokens = int64_t{batch.micro_batch_sequences()} * batch.seq_len()};
  for (const auto& point : config.point()) spec.points.push_back({point.at(), point.sparsity()});
  return spec;
}

PruningSpec ToPruningSpec(const PruningConfig& config) {
  const auto kind = [](const PruningConfig::Kind& from) {
    return PruningSpec::Kind{
        .enabled = from.enabled(), .minimum = from.minimum(), .alignment = from.alignment()};
  };
  return {.target_parameters = config.target_parameters(),
          .criterion = config.criterion(),
          .curve = static_cast<SparsityCurve>(config.curve()),
          .clock = static_cast<Clock>(config.clock()),
          .begin = config.begin(),
          .end = config.end(),
          .interval = config.interval(),
          .units_per_event = config.units_per_event(),
          .kinds = {kind(config.attention()), kind(config.feed_forward()), kind(config.stem())},
          .even_layers = config.even_layers(),
          .removal = static_cast<PruningSpec::Removal>(config.removal()),
          .shrink_steps = config.shrink_steps(),
          .smoothing = config.smoothing(),
          .outlier_factor = config.outlier_factor(),
          .update_remaining = config.update_remaining(),
          .update_damping = config.update_damping(),
          .update_block = config.update_block(),
          .compact_share = config.compact_share()};
}

PhaseSpec ToPhaseSpec(const Phase& phase, const MergedPhase& merged, int64_t first_step) {
  PhaseSpec spec;
  spec.name = phase.name();
  spec.first_step = first_step;
  spec.steps = merged.steps;
  spec.moments = static_cast<Moments>(phase.moments());
  spec.data = ToDataSpec(merged.data);
  spec.batch = {.seq_len = merged.batch.seq_len(),
                .tokens_per_step = merged.batch.tokens_per_step(),
                .micro_batch_sequences = merged.batch.micro_batch_sequences()};
  spec.optimizer = {
      .beta1 = merged.optimizer.beta1(),
      .beta2 = merged.optimizer.beta2(),
      .epsilon = merged.optimizer.epsilon(),
      .weight_decay = merged.optimizer.weight_decay(),
      .clip_norm = merged.optimizer.clip_norm(),
      .state = {.bf16 = merged.optimizer.state_dtype() == OptimizerConfig::BF16,
                .eight_bit_moments = merged.optimizer.moments() == OptimizerConfig::EIGHT_BIT},
      .per_layer = merged.optimizer.update() == OptimizerConfig::PER_LAYER};
  spec.schedule = ToScheduleSpec(merged.schedule, merged.steps);
  if (phase.has_rewind_step()) spec.rewind_step = phase.rewind_step();
  spec.distillation = {.teacher = merged.distillation.teacher(),
                       .temperature = merged.distillation.temperature(),
                       .alpha = merged.distillation.alpha()};
  if (merged.pruning) spec.pruning = ToPruningSpec(*merged.pruning);
  for (const SparsityConfig& entry : merged.sparsity) {
    spec.sparsity.push_back(ToSparsitySpec(entry, merged.batch));
  }
  return spec;
}

DType ToDType(ParallelConfig::GradDtype dtype) {
  return dtype == ParallelConfig::BF16 ? DType::kBF16 : DType::kF32;
}

LinkSpec ToLinkSpec(const LinkConfig& config) {
  return {.network_gbps = config.network_gbps(),
          .network_latency_us = config.network_latency_us(),
          .node_gbps = config.node_gbps(),
          .node_latency_us = config.node_latency_us(),
          .gpus_per_node = config.gpus_per_node()};
}

}  // namespace

RunSpec ToSpec(const RunConfig& config, const std::vector<MergedPhase>& phases) {
  RunSpec spec;
  spec.name = config.name();
  spec.seed = config.seed();
  spec.init_from = config.init_from();
  spec.model = ToModelSpec(config.model());
  for (int i = 0; i < config.phase_size(); ++i) {
    spec.phases.push_back(ToPhaseSpec(config.phase(i), phases[i], spec.total_steps()));
  }
  const EvaluationConfig& evaluation = config.evaluation();
  spec.evaluation = {
      .every_steps = evaluation.every_steps(),
      .tokens = evaluation.tokens(),
      .formula = static_cast<LossFormula>(evaluation.formula()),
      .sample_prompts = {evaluation.sample_prompt().begin(), evaluation.sample_prompt().end()},
      .sample_tokens = evaluation.sample_tokens()};
  spec.zero_stage = config.parallel().zero_stage();
  spec.bucket_megabytes = config.parallel().bucket_megabytes();
  spec.link = ToLinkSpec(config.parallel().link());
  spec.grad_dtype = ToDType(config.parallel().grad_dtype());
  spec.wire_dtype = ToDType(config.parallel().wire_dtype());
  spec.cpu_threads = config.parallel().cpu_threads();
  spec.required_ranks = config.parallel().ranks();
  spec.deterministic = config.parallel().deterministic();
  spec.graphs = static_cast<GraphChoice>(config.parallel().graphs());
  spec.device = static_cast<DeviceChoice>(config.parallel().device());
  spec.timeout_seconds = config.parallel().timeout_seconds();
  spec.checkpoint_every_steps = config.checkpoint().every_steps();
  spec.checkpoint_keep_last = config.checkpoint().keep_last();
  spec.log_every_steps = config.log().every_steps();
  spec.tensorboard = config.log().tensorboard();
  spec.peak_tflops = config.log().peak_tflops();
  return spec;
}

}  // namespace filigree::config

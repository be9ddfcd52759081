#include "trainer/config/validate.h"

#include <algorithm>
#include <string>

#include "trainer/config/parse.h"
#include "trainer/config/ranges.h"

namespace filigree::config {
namespace {

std::string Str(int64_t value) { return std::to_string(value); }

// "the nearest that work are 512 and 1024": multiples of `step` around a positive `value`.
std::string NearestMultiples(int64_t value, int64_t step) {
  const int64_t below = value / step * step;
  if (below == 0) return "the nearest that works is " + Str(step);
  return "the nearest that work are " + Str(below) + " and " + Str(below + step);
}

class Validator {
 public:
  Validator(const RunConfig& config, const Origins& origins, const KnownNames& known,
            Problems* problems)
      : config_(config), origins_(origins), known_(known), problems_(problems) {}

  void CheckModel();
  void CheckGeluCodes();
  void CheckFamily();
  void CheckLength(int index, const MergedPhase& phase);
  void CheckBatch(const MergedPhase& phase);
  void CheckData(const MergedPhase& phase);
  void CheckSchedule(const MergedPhase& phase);
  void CheckPruning(const MergedPhase& phase);
  void CheckLayerShapes();
  void CheckParallel();
  void CheckDistillation(const MergedPhase& phase);
  void CheckSparsity(const std::string& prefix,
                     const google::protobuf::RepeatedPtrField<SparsityConfig>& list);

 private:
  void Add(const std::string& path, const std::string& message) {
    problems_->Add(origins_.Find(path), message);
  }
  void AddInPhase(const MergedPhase& phase, const std::string& path, const std::string& message) {
    problems_->Add(FindInPhase(origins_, phase, path), path + " " + message);
  }
  void CheckName(Place place, const std::string& what, const std::string& name,
                 const std::vector<std::string>& known) {
    if (std::find(known.begin(), known.end(), name) != known.end()) return;
    problems_->Add(place, "unknown " + what + " \"" + name + "\"" + SuggestName(name, known));
  }

  const RunConfig& config_;
  const Origins& origins_;
  const KnownNames& known_;
  Problems* problems_;
};

void Validator::CheckModel() {
  const ModelConfig& m = config_.model();
  if (!m.has_layers()) Add("model.layers", "model.layers is not set; give the number of layers");
  if (!m.has_width()) Add("model.width", "model.width is not set; give the model's width");
  if (!m.has_heads()) {
    Add("model.heads", "model.heads is not set; give the number of attention heads");
  }
  if (m.heads() > 0 && m.width() > 0 && !m.has_head_size()) {
    Add("model.heads", "model.heads = " + Str(m.heads()) + " does not divide model.width = " +
                           Str(m.width()) + "; change one of them or set model.head_size");
  }
  if (m.heads() > 0 && m.kv_heads() > 0 && m.heads() % m.kv_heads() != 0) {
    Add("model.kv_heads", "model.heads = " + Str(m.heads()) +
                              " is not a multiple of model.kv_heads = " + Str(m.kv_heads()) +
                              "; change one of them");
  }
  if (m.vocab_size() > 0 && m.padded_vocab_size() > 0 && m.padded_vocab_size() < m.vocab_size()) {
    Add("model.padded_vocab_size", "model.padded_vocab_size = " + Str(m.padded_vocab_size()) +
                                       " is below the vocabulary of " + Str(m.vocab_size()) +
                                       "; leave it out for the next multiple of 64");
  }
  CheckLayerShapes();
  CheckFamily();
  CheckGeluCodes();
}

void Validator::CheckLayerShapes() {
  const ModelConfig& m = config_.model();
  if (m.has_norm_width() && m.family() == ModelConfig::GPT2) {
    Add("model.norm_width",
        "model.norm_width is RMSNorm's; the GPT2 family has LayerNorm: leave it out");
  } else if (m.norm_width() > 0 && m.norm_width() < m.width()) {
    Add("model.norm_width", "model.norm_width = " + Str(m.norm_width()) +
                                " is below model.width = " + Str(m.width()) +
                                "; it is the width before channels were removed");
  }
  if (m.layer_shape().empty()) return;
  if (m.layer_shape_size() != m.layers()) {
    Add("model.layer_shape", "model.layer_shape is given " + Str(m.layer_shape_size()) +
                                 " times for " + Str(m.layers()) +
                                 " layers; give one for each, or none");
  }
  for (int i = 0; i < m.layer_shape_size(); ++i) {
    const auto& shape = m.layer_shape(i);
    const std::string path = "model.layer_shape[" + Str(i) + "]";
    if (shape.heads() > 0 && shape.kv_heads() > 0 && shape.feed_forward() > 0) {
      if (shape.heads() % shape.kv_heads() == 0) continue;
      Add(path, path + ".heads = " + Str(shape.heads()) + " is not a multiple of its kv_heads = " +
                    Str(shape.kv_heads()) + "; change one of them");
    } else {
      Add(path, path + " must give heads, kv_heads and feed_forward");
    }
  }
}

void Validator::CheckPruning(const MergedPhase& phase) {
  if (!phase.pruning) return;
  CheckName(FindInPhase(origins_, phase, "pruning.criterion"), "pruning criterion",
            phase.pruning->criterion(), known_.saliency_criteria);
  if (!phase.pruning->has_target_parameters()) {
    AddInPhase(phase, "pruning.target_parameters",
               "is missing; give the parameters that the model is to end with");
  }
}

void Validator::CheckGeluCodes() {
  const ModelConfig& m = config_.model();
  constexpr char kField[] = "model.gelu_derivative_bits";
  if (m.gelu_derivative_bits() == 0) return;
  if (m.gelu_derivative_bits() != 8) {
    Add(kField, "model.gelu_derivative_bits = " + Str(m.gelu_derivative_bits()) +
                    " is not known; give 8, or 0 to keep GELU's input");
  }
  if (m.family() != ModelConfig::GPT2) {
    Add(kField, "model.gelu_derivative_bits is the GPT2 family's; llama has no GELU: leave it out");
  }
  if (m.recompute() == ModelConfig::ACTIVATIONS) {
    Add(kField,
        "model.gelu_derivative_bits keeps no input from which recompute: ACTIVATIONS could compute "
        "GELU again; leave one of them out, or take recompute: LAYER");
  }
}

void Validator::CheckFamily() {
  const ModelConfig& m = config_.model();
  if (m.family() == ModelConfig::LLAMA) {
    if (m.head_size() % 2 != 0) {
      Add(origins_.Has("model.head_size") ? "model.head_size" : "model.heads",
          "model.head_size = " + Str(m.head_size()) +
              " is odd; rotary positions of the llama family need an even one");
    }
    return;
  }
  if (m.gate_activation() != ModelConfig::SILU) {
    Add("model.gate_activation",
        "model.gate_activation is llama's; the GPT2 family has no gate: leave it out");
  }
  if (m.kv_heads() != m.heads()) {
    Add("model.kv_heads",
        "model.kv_heads differs from model.heads; the GPT2 family has no grouped "
        "heads: leave model.kv_heads out, or take family LLAMA");
  }
  if (m.head_size() > 0 && int64_t{m.head_size()} * m.heads() != m.width()) {
    Add("model.head_size",
        "model.head_size times model.heads must be model.width in the GPT2 "
        "family; leave model.head_size out");
  }
}

void Validator::CheckLength(int index, const MergedPhase& merged) {
  const Phase& phase = config_.phase(index);
  if (phase.has_steps() == phase.has_tokens()) {
    Add("phase[" + Str(index) + (phase.has_steps() ? "].steps" : "]"),
        "phase \"" + phase.name() + "\" gives " + (phase.has_steps() ? "both" : "neither") +
            " of tokens and steps; give exactly one of them");
    return;
  }
  const int64_t tokens_per_step = merged.batch.tokens_per_step();
  const int64_t seq_len = merged.batch.seq_len();
  // A batch that is wrong itself is reported by CheckBatch.
  if (seq_len <= 0 || tokens_per_step % seq_len != 0) return;
  if (phase.tokens() > 0 && tokens_per_step > 0 && phase.tokens() % tokens_per_step != 0) {
    Add("phase[" + Str(index) + "].tokens",
        "the phase's tokens = " + Str(phase.tokens()) +
            " are no multiple of batch.tokens_per_step = " + Str(tokens_per_step) + "; " +
            NearestMultiples(phase.tokens(), tokens_per_step));
  }
}

void Validator::CheckBatch(const MergedPhase& phase) {
  const int64_t seq_len = phase.batch.seq_len();
  const int64_t tokens = phase.batch.tokens_per_step();
  if (seq_len <= 0) return;
  if (tokens > 0 && tokens % seq_len != 0) {
    AddInPhase(phase, "batch.tokens_per_step",
               "= " + Str(tokens) + " is no multiple of batch.seq_len = " + Str(seq_len) + "; " +
                   NearestMultiples(tokens, seq_len));
  }
  const ModelConfig& m = config_.model();
  if (m.max_positions() > 0 && seq_len > m.max_positions()) {
    AddInPhase(phase, "batch.seq_len",
               "= " + Str(seq_len) + " is beyond model.max_positions = " + Str(m.max_positions()) +
                   "; shorten the sequences or raise model.max_positions");
  }
}

void Validator::CheckData(const MergedPhase& phase) {
  const DataConfig& data = phase.data;
  if (data.train().empty()) {
    AddInPhase(phase, "data.train",
               "is missing; give train { glob: \"...\" }, or the directory that `filigree prepare` "
               "wrote as data.prepared");
  }
  for (int i = 0; i < data.train_size(); ++i) {
    if (!data.train(i).glob().empty()) continue;
    AddInPhase(phase, "data.train[" + Str(i) + "]", "has no glob; name its shards");
  }
  const std::pair<const char*, int64_t> tokens[] = {{"loss_after_token", data.loss_after_token()},
                                                    {"delimiter_token", data.delimiter_token()},
                                                    {"padding_token", data.padding_token()}};
  const int64_t vocab_size = config_.model().vocab_size();
  for (const auto& [name, token] : tokens) {
    if (vocab_size <= 0 || token < vocab_size) continue;
    AddInPhase(phase, std::string("data.") + name,
               "= " + Str(token) + " is beyond the vocabulary of " + Str(vocab_size) + " tokens");
  }
  if (data.layout() != DataConfig::ONE_DOCUMENT_PER_ROW || !data.prepared().empty()) return;
  if (data.delimiter_token() < 0 || data.padding_token() < 0) {
    AddInPhase(phase, "data.layout",
               "= ONE_DOCUMENT_PER_ROW needs data.delimiter_token and data.padding_token (or "
               "data.prepared, whose manifest knows the delimiter)");
  }
}

void Validator::CheckSchedule(const MergedPhase& phase) {
  const ScheduleConfig& schedule = phase.schedule;
  if (schedule.has_warmup_steps() && schedule.has_warmup_fraction()) {
    AddInPhase(phase, "schedule.warmup_fraction",
               "and schedule.warmup_steps are both given; give at most one of them");
    return;
  }
  if (phase.steps == 0) return;
  if (schedule.warmup_steps() > phase.steps) {
    AddInPhase(phase, "schedule.warmup_steps",
               "= " + Str(schedule.warmup_steps()) + " is longer than the phase of " +
                   Str(phase.steps) + " steps; shorten it or lengthen the phase");
    return;
  }
  const double warmup = schedule.has_warmup_steps() ? static_cast<double>(schedule.warmup_steps()) /
                                                          static_cast<double>(phase.steps)
                                                    : schedule.warmup_fraction();
  if (schedule.shape() == ScheduleConfig::WSD && warmup + schedule.wsd_decay_fraction() > 1) {
    AddInPhase(phase, "schedule.wsd_decay_fraction",
               "and the warm-up together are longer than the phase; shorten one of them");
  }
}

void Validator::CheckParallel() {
  const ParallelConfig& parallel = config_.parallel();
  if (parallel.grad_dtype() == ParallelConfig::BF16 &&
      parallel.wire_dtype() == ParallelConfig::F32) {
    Add("parallel.wire_dtype",
        "parallel.wire_dtype = F32 is wider than parallel.grad_dtype = BF16: it would send zeros; "
        "leave wire_dtype out, or set grad_dtype to F32");
  }
}

void Validator::CheckDistillation(const MergedPhase& phase) {
  const DistillationConfig& distillation = phase.distillation;
  const bool given = distillation.has_alpha() || distillation.has_temperature();
  if (!given || distillation.alpha() == 0 || !distillation.teacher().empty()) return;
  AddInPhase(phase, "distillation.teacher",
             "is missing; name the teacher's checkpoint, or set distillation { alpha: 0 }");
}

void Validator::CheckSparsity(const std::string& prefix,
                              const google::protobuf::RepeatedPtrField<SparsityConfig>& list) {
  for (int i = 0; i < list.size(); ++i) {
    const SparsityConfig& entry = list[i];
    const std::string path = prefix + "sparsity[" + Str(i) + "].";
    const auto check = [&](const std::string& field, const std::string& name,
                           const std::vector<std::string>& known) {
      CheckName(origins_.Find(path + field), field, name, known);
    };
    check("parameterisation", entry.parameterisation(), known_.parameterisations);
    check("rule", entry.rule(), known_.rules);
    check("distribution", entry.distribution(), known_.distributions);
    check("criterion", entry.criterion(), known_.criteria);
    if (entry.parameterisation() == "dense" && entry.sparsity() > 0) {
      Add(path + "sparsity",
          "a dense parameterisation has no zeros; set sparsity to 0 or name a "
          "sparse parameterisation");
    }
  }
}

}  // namespace

void Validate(const RunConfig& config, const std::vector<MergedPhase>& phases,
              const Origins& origins, const KnownNames& known, Problems* problems) {
  CheckRanges(config, origins, problems);
  Validator validator(config, origins, known, problems);
  validator.CheckModel();
  validator.CheckParallel();
  validator.CheckSparsity("", config.sparsity());
  if (config.phase().empty()) {
    problems->Add(Place{},
                  "the run has no phase; add phase { steps: ... } or phase { tokens: ... }");
  }
  for (int i = 0; i < config.phase_size(); ++i) {
    validator.CheckLength(i, phases[i]);
    validator.CheckSparsity(phases[i].path, config.phase(i).sparsity());
  }
  for (const MergedPhase& phase : phases) {
    validator.CheckBatch(phase);
    validator.CheckData(phase);
    validator.CheckSchedule(phase);
    validator.CheckDistillation(phase);
    validator.CheckPruning(phase);
  }
}

}  // namespace filigree::config

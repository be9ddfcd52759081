#include "trainer/config/complete.h"

#include <algorithm>
#include <map>

#include "data/manifest.h"
#include "kernels/base/math.h"
#include "trainer/config/merge.h"

namespace filigree::config {
namespace {

// The manifests of prepared directories, each read once and only if asked for.
class Manifests {
 public:
  Manifests(const Origins& origins, Problems* problems) : origins_(origins), problems_(problems) {}

  // nullptr: it cannot be read, which is reported at the phase's `data.prepared`.
  const Manifest* Find(const MergedPhase& phase) {
    const std::string& directory = phase.data.prepared();
    auto found = manifests_.find(directory);
    if (found == manifests_.end()) {
      found = manifests_.emplace(directory, ReadManifest(directory)).first;
    }
    if (found->second.ok()) return &*found->second;
    problems_->Add(FindInPhase(origins_, phase, "data.prepared"),
                   found->second.status().message() +
                       "; data.prepared must be a directory that `filigree prepare` wrote");
    return nullptr;
  }

 private:
  const Origins& origins_;
  Problems* problems_;
  std::map<std::string, StatusOr<Manifest>> manifests_;
};

// A level that names prepared data takes its shards from there, unless it names them itself.
void FillShards(DataConfig* data) {
  if (data->prepared().empty()) return;
  if (data->train().empty()) data->add_train()->set_glob(data->prepared() + "/train_*.bin");
  if (!data->has_validation()) data->set_validation(data->prepared() + "/val_*.bin");
}

// The rule's defaults for the fields of its topology.
void FillRule(const SparsitySpec& rule, SparsityConfig* entry) {
  const auto fill = [](bool has, auto setter, auto value) {
    if (!has) setter(value);
  };
#define FILL(field, value) \
  fill(                    \
      entry->has_##field(), [&](auto v) { entry->set_##field(v); }, value)
  FILL(distribution, rule.distribution);
  FILL(criterion, rule.criterion);
  FILL(initial_sparsity, rule.initial_sparsity < 0 ? entry->sparsity() : rule.initial_sparsity);
  FILL(curve, static_cast<SparsityConfig::Curve>(rule.curve));
  FILL(clock, static_cast<SparsityConfig::Clock>(rule.clock));
  FILL(begin, rule.begin);
  FILL(end, rule.end);
  FILL(update_interval, rule.update_interval);
  FILL(drop_fraction, rule.drop_fraction);
  FILL(final_drop_fraction, rule.final_drop_fraction);
  FILL(drop_curve, static_cast<SparsityConfig::DropCurve>(rule.drop_curve));
  FILL(drop_end, rule.drop_end);
  FILL(min_density, rule.min_density);
  FILL(min_share, rule.min_share);
  FILL(growth_ramp_steps, rule.growth_ramp_steps);
#undef FILL
}

// What n of m leave out, where the config leaves it to n and m.
void FillNM(SparsityConfig* entry) {
  if (entry->parameterisation() != "n_m" || entry->has_sparsity() || entry->m() <= 0) return;
  entry->set_sparsity(1 - static_cast<double>(entry->n()) / entry->m());
}

void FillLists(const KnownNames& known, DataConfig* data,
               google::protobuf::RepeatedPtrField<SparsityConfig>* sparsity) {
  for (DataSource& source : *data->mutable_train()) FillDefaults(&source);
  for (SparsityConfig& entry : *sparsity) {
    FillNM(&entry);
    const auto rule = known.rule_defaults.find(entry.rule());
    FillRule(
        rule == known.rule_defaults.end() ? SparsitySpec{.initial_sparsity = -1} : rule->second,
        &entry);
    FillDefaults(&entry);
    if (!entry.include().empty()) continue;
    entry.add_include("layers.*.attention.*.weight");
    entry.add_include("layers.*.mlp.*.weight");
  }
}

// Defaults of pruning; the kinds' alignments differ.
void FillPruning(PruningConfig* pruning) {
  constexpr int32_t kHeadAlignment = 1, kChannelAlignment = 128;
  const auto fill = [](int32_t alignment, PruningConfig::Kind* kind) {
    FillDefaults(kind);
    if (!kind->has_alignment()) kind->set_alignment(alignment);
  };
  FillDefaults(pruning);
  fill(kHeadAlignment, pruning->mutable_attention());
  fill(kChannelAlignment, pruning->mutable_feed_forward());
  fill(kChannelAlignment, pruning->mutable_stem());
}

void FillRunLevel(const KnownNames& known, RunConfig* config) {
  FillShards(config->mutable_data());
  FillLists(known, config->mutable_data(), config->mutable_sparsity());
  ScheduleConfig* schedule = config->mutable_schedule();
  if (!schedule->has_warmup_steps() && !schedule->has_warmup_fraction()) {
    schedule->set_warmup_fraction(0.01);
  }
  FillDefaults(config);
  FillDefaults(config->mutable_model());
  FillDefaults(config->mutable_data());
  FillDefaults(config->mutable_batch());
  FillDefaults(config->mutable_optimizer());
  FillDefaults(schedule);
  if (config->has_distillation()) FillDefaults(config->mutable_distillation());
  FillDefaults(config->mutable_evaluation());
  ParallelConfig* parallel = config->mutable_parallel();
  if (!parallel->has_wire_dtype()) parallel->set_wire_dtype(parallel->grad_dtype());
  FillDefaults(parallel);
  FillDefaults(config->mutable_parallel()->mutable_link());
  FillDefaults(config->mutable_checkpoint());
  FillDefaults(config->mutable_log());
  if (config->has_pruning()) FillPruning(config->mutable_pruning());
}

int64_t StepsOf(const Phase& phase, const BatchConfig& batch) {
  if (phase.has_steps() == phase.has_tokens()) return 0;
  if (phase.has_steps()) return std::max<int64_t>(phase.steps(), 0);
  if (phase.tokens() <= 0 || batch.tokens_per_step() <= 0) return 0;
  return phase.tokens() % batch.tokens_per_step() == 0 ? phase.tokens() / batch.tokens_per_step()
                                                       : 0;
}

MergedPhase Merge(const RunConfig& config, const Phase& phase, const std::string& path) {
  MergedPhase merged;
  merged.path = path;
  merged.data = config.data();
  merged.batch = config.batch();
  merged.optimizer = config.optimizer();
  merged.schedule = config.schedule();
  MergeFields(phase.data(), &merged.data);
  MergeFields(phase.batch(), &merged.batch);
  MergeFields(phase.optimizer(), &merged.optimizer);
  MergeFields(phase.schedule(), &merged.schedule);
  merged.distillation = config.distillation();
  MergeFields(phase.distillation(), &merged.distillation);
  const auto& sparsity = phase.sparsity().empty() ? config.sparsity() : phase.sparsity();
  merged.sparsity.assign(sparsity.begin(), sparsity.end());
  if (config.has_pruning() || phase.has_pruning()) {
    merged.pruning = config.pruning();
    MergeFields(phase.pruning(), &*merged.pruning);
    FillPruning(&*merged.pruning);
  }
  merged.steps = StepsOf(phase, merged.batch);
  return merged;
}

std::vector<MergedPhase> MergePhases(const KnownNames& known, RunConfig* config) {
  std::vector<MergedPhase> merged;
  for (int i = 0; i < config->phase_size(); ++i) {
    Phase* phase = config->mutable_phase(i);
    if (phase->has_data()) FillShards(phase->mutable_data());
    // A mutable message would be printed even where it is empty.
    DataConfig no_data;
    FillLists(known, phase->has_data() ? phase->mutable_data() : &no_data,
              phase->mutable_sparsity());
    FillDefaults(phase);
    if (!phase->has_name()) phase->set_name("phase_" + std::to_string(i + 1));
    merged.push_back(Merge(*config, *phase, "phase[" + std::to_string(i) + "]."));
  }
  if (merged.empty()) merged.push_back(Merge(*config, Phase(), ""));
  return merged;
}

void FillDelimiters(RunConfig* config, std::vector<MergedPhase>* phases, Manifests* manifests) {
  for (int i = 0; i < config->phase_size(); ++i) {
    DataConfig& data = (*phases)[i].data;
    if (data.layout() != DataConfig::ONE_DOCUMENT_PER_ROW || data.prepared().empty()) continue;
    if (data.delimiter_token() >= 0 && data.padding_token() >= 0) continue;
    const Manifest* manifest = manifests->Find((*phases)[i]);
    if (!manifest) continue;
    if (data.delimiter_token() < 0) data.set_delimiter_token(manifest->tokenizer.delimiter_id);
    // A padded position is never a target and no later position counts, so any token will do.
    if (data.padding_token() < 0) data.set_padding_token(data.delimiter_token());
    DataConfig* own = config->mutable_phase(i)->mutable_data();
    own->set_delimiter_token(data.delimiter_token());
    own->set_padding_token(data.padding_token());
  }
}

void FillVocabulary(const Origins& origins, const std::vector<MergedPhase>& phases,
                    ModelConfig* model, Manifests* manifests, Problems* problems) {
  if (model->has_vocab_size()) return;
  std::string first_directory;
  bool unreadable = false;
  for (const MergedPhase& phase : phases) {
    if (phase.data.prepared().empty()) continue;
    const Manifest* manifest = manifests->Find(phase);
    unreadable |= manifest == nullptr;
    if (!manifest) continue;
    const int32_t vocab_size = manifest->tokenizer.vocab_size;
    if (!model->has_vocab_size()) {
      model->set_vocab_size(vocab_size);
      first_directory = phase.data.prepared();
    } else if (model->vocab_size() != vocab_size) {
      problems->Add(FindInPhase(origins, phase, "data.prepared"),
                    phase.data.prepared() + " has a vocabulary of " + std::to_string(vocab_size) +
                        ", " + first_directory + " one of " + std::to_string(model->vocab_size()) +
                        "; prepare both with the same tokenizer");
    }
  }
  if (!model->has_vocab_size() && !unreadable) {
    problems->Add(origins.Find("model.vocab_size"),
                  "model.vocab_size is not set and no data.prepared gives it; set one of the two");
  }
}

// Leaves a field that cannot be derived unset: what it would derive from is reported.
void FillModel(const std::vector<MergedPhase>& phases, ModelConfig* model) {
  const bool llama = model->family() == ModelConfig::LLAMA;
  if (!model->has_kv_heads() && model->has_heads()) model->set_kv_heads(model->heads());
  if (!model->has_head_size() && model->heads() > 0 && model->width() % model->heads() == 0) {
    model->set_head_size(model->width() / model->heads());
  }
  if (!model->has_feed_forward() && model->width() > 0) {
    const int64_t width = model->width();
    model->set_feed_forward(
        static_cast<int32_t>(llama ? AlignUp(CeilDiv(8 * width, 3), 32) : 4 * width));
  }
  if (model->padded_vocab_size() == 0 && model->vocab_size() > 0) {
    model->set_padded_vocab_size(static_cast<int32_t>(AlignUp(model->vocab_size(), 64)));
  }
  if (!model->has_max_positions()) {
    int32_t longest = 0;
    for (const MergedPhase& phase : phases) longest = std::max(longest, phase.batch.seq_len());
    model->set_max_positions(longest);
  }
  if (!model->has_tied_head()) model->set_tied_head(!llama);
  if (!model->has_norm_epsilon()) model->set_norm_epsilon(llama ? 1e-6 : 1e-5);
}

}  // namespace

Place FindInPhase(const Origins& origins, const MergedPhase& phase, const std::string& path) {
  for (std::string part = path;; part.resize(part.rfind('.'))) {
    for (const std::string& candidate : {phase.path + part, part}) {
      if (origins.Has(candidate)) return origins.Find(candidate);
    }
    if (part.find('.') == std::string::npos) return origins.Find(phase.path + part);
  }
}

std::vector<MergedPhase> Complete(const Origins& origins, const KnownNames& known,
                                  RunConfig* config, Problems* problems) {
  FillRunLevel(known, config);
  std::vector<MergedPhase> phases = MergePhases(known, config);
  Manifests manifests(origins, problems);
  FillDelimiters(config, &phases, &manifests);
  FillVocabulary(origins, phases, config->mutable_model(), &manifests, problems);
  FillModel(phases, config->mutable_model());
  return phases;
}

}  // namespace filigree::config

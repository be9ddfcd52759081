#include "trainer/resume.h"

#include <algorithm>
#include <map>
#include <sstream>

#include "trainer/checkpoint/merged_weight.h"
#include "trainer/export/open_model.h"
#include "trainer/linear/linear.h"
#include "trainer/model/model.h"
#include "trainer/tokenizer_match.h"
#include "trainer/topology/plan.h"

namespace filigree {
namespace {

std::string Describe(const SparseLayout& layout) {
  std::ostringstream text;
  text << NameOf(layout.kind());
  if (layout.kind() == LayoutKind::kBlocked) {
    text << " " << layout.block_out() << " x " << layout.block_in();
  }
  if (layout.kind() == LayoutKind::kNM) text << " " << layout.n() << ":" << layout.m();
  text << " with " << layout.stored_count() << " of " << layout.logical_count() << " cells";
  return text.str();
}

// Whether every size of `model` is one that pruning may have made of `larger`.
bool MayBePruned(const ModelSpec& model, const ModelSpec& larger) {
  if (model.layers != larger.layers || model.width > larger.width) return false;
  if (model.width < larger.width && model.norm_divisor() != larger.norm_divisor()) return false;
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    const LayerShape small = model.ShapeOf(layer), large = larger.ShapeOf(layer);
    if (small.kv_heads > large.kv_heads || small.feed_forward > large.feed_forward) return false;
    if (small.heads * large.kv_heads != large.heads * small.kv_heads) return false;
  }
  return true;
}

// A checkpoint of a run that prunes may be smaller than the config's model: it is compared in
// everything else.
ModelSpec WithSizesOf(ModelSpec model, const ModelSpec& sizes) {
  model.width = sizes.width;
  model.heads = sizes.heads;
  model.kv_heads = sizes.kv_heads;
  model.feed_forward = sizes.feed_forward;
  model.norm_width = sizes.norm_width;
  model.layer_shapes = sizes.layer_shapes;
  return model;
}

Status CheckFits(const CheckpointInfo& info, const RunSpec& run, const std::string& path) {
  ModelSpec model = info.model;
  const bool prunes = info.pruning.has_value() &&
                      std::any_of(run.phases.begin(), run.phases.end(),
                                  [](const PhaseSpec& phase) { return phase.pruning.has_value(); });
  if (prunes && MayBePruned(model, run.model)) model = WithSizesOf(model, run.model);
  RETURN_IF_ERROR(CheckSameModel(model, run.model, path,
                                 "use the config it was trained with, or choose another --out"));
  if (info.has_moments && info.seed != run.seed) {
    return InvalidInput(path + ": was trained with seed " + std::to_string(info.seed) +
                        ", the config says " + std::to_string(run.seed) +
                        "; set seed: " + std::to_string(info.seed) + " or choose another --out");
  }
  if (info.step > run.total_steps()) {
    return InvalidInput(path + ": is at step " + std::to_string(info.step) +
                        ", beyond the config's " + std::to_string(run.total_steps()) +
                        " steps; lengthen a phase or choose another --out");
  }
  return OkStatus();
}

// Rank, scale and kind of the factors whose A is given (nullptr: there are none).
std::string DescribeFactors(const Parameter* a, bool has_weight) {
  if (a == nullptr) return "without low-rank factors";
  std::ostringstream text;
  text << "with " << (has_weight ? "a sparse part and " : "") << "factors of rank " << a->shape[0]
       << " and scale " << a->factor_scale
       << (a->factor == FactorKind::kNonlinear ? ", silu between them" : "");
  return text.str();
}

// A linear's factors start at initial values or go on from their own; a dense weight has none.
// `merges`: low-rank factors may also become a weight.
Status CheckFactors(const CheckpointInfo& checkpoint, const RunSpec& run, const PhaseSpec& phase,
                    const std::string& path, bool merges) {
  for (const LinearSpec& linear : LinearSpecs(run.model)) {
    const std::string weight = linear.name + ".weight";
    const SparsitySpec sparsity = MatchSparsity(weight, phase.sparsity);
    const Parameterisation* row = FindParameterisation(sparsity.parameterisation);
    Parameter asked;
    asked.factor = row->factors;
    asked.shape = {sparsity.rank, linear.in};
    if (asked.factor == FactorKind::kLowRank) asked.factor_scale = sparsity.low_rank_scale();
    const WeightParts stored = FindWeightParts(checkpoint.parameters, weight);
    const std::string found =
        DescribeFactors(stored.has_factors() ? &checkpoint.parameters[stored.low_rank_a] : nullptr,
                        stored.weight >= 0);
    const std::string wanted =
        DescribeFactors(row->factors == FactorKind::kNone ? nullptr : &asked, row->has_weight);
    if (found == wanted) continue;
    const bool merged = merges && asked.factor == FactorKind::kNone && stored.has_factors() &&
                        checkpoint.parameters[stored.low_rank_a].factor == FactorKind::kLowRank;
    if (merged) continue;
    return InvalidInput(path + ": " + weight + " is stored " + found + ", phase " + phase.name +
                        " of the config asks for one " + wanted +
                        "; use the parameterisation it was trained with");
  }
  return OkStatus();
}

}  // namespace

ModelSpec ResumedModel(const ModelSpec& checkpoint, const ModelSpec& run) {
  return WithSizesOf(run, checkpoint);
}

Status CheckSameModel(const ModelSpec& checkpoint, const ModelSpec& run, const std::string& path,
                      const std::string& mend) {
  std::ostringstream differences;
  const auto compare = [&](const char* field, auto a, auto b) {
    if (a == b) return;
    if (differences.tellp() > 0) differences << ", ";
    differences << field << " " << a << " (config: " << b << ")";
  };
  const auto family = [](ModelFamily f) { return f == ModelFamily::kLlama ? "LLAMA" : "GPT2"; };
  compare("family", std::string(family(checkpoint.family)), std::string(family(run.family)));
  compare("layers", checkpoint.layers, run.layers);
  compare("width", checkpoint.width, run.width);
  compare("heads", checkpoint.heads, run.heads);
  compare("kv_heads", checkpoint.kv_heads, run.kv_heads);
  compare("head_size", checkpoint.head_size, run.head_size);
  compare("feed_forward", checkpoint.feed_forward, run.feed_forward);
  compare("vocab_size", checkpoint.vocab_size, run.vocab_size);
  compare("tied_head", checkpoint.tied_head, run.tied_head);
  const auto gate = [](GateActivation g) {
    return g == GateActivation::kSilu ? "SILU" : "IDENTITY";
  };
  if (run.family == ModelFamily::kLlama) {
    compare("gate_activation", std::string(gate(checkpoint.gate_activation)),
            std::string(gate(run.gate_activation)));
  }
  if (checkpoint.width == run.width) {  // else it says that again
    compare("norm_width", checkpoint.norm_divisor(), run.norm_divisor());
  }
  const auto shapes = [](const ModelSpec& model) {
    std::ostringstream text;
    for (int64_t layer = 0; layer < model.layers; ++layer) {
      const LayerShape shape = model.ShapeOf(layer);
      text << (layer > 0 ? " " : "") << shape.heads << "/" << shape.kv_heads << "/"
           << shape.feed_forward;
    }
    return text.str();
  };
  if (!checkpoint.layer_shapes.empty() || !run.layer_shapes.empty()) {
    compare("layer_shape", shapes(checkpoint), shapes(run));
  }
  compare("rope_theta", checkpoint.rope_theta, run.rope_theta);
  compare("norm_epsilon", checkpoint.norm_epsilon, run.norm_epsilon);
  if (run.family == ModelFamily::kGpt2) {
    compare("max_positions", checkpoint.max_positions, run.max_positions);
  }
  if (differences.tellp() == 0) return OkStatus();
  return InvalidInput(path + ": holds another model: " + differences.str() + "; " + mend);
}

Status CheckLayouts(const CheckpointInfo& checkpoint, const RunSpec& run, int phase,
                    const std::string& path) {
  RETURN_IF_ERROR(CheckFactors(checkpoint, run, run.phases[phase], path, /*merges=*/false));
  std::map<std::string, const SparseLayout*> stored;
  for (const Parameter& parameter : checkpoint.parameters) {
    stored[parameter.name] = &parameter.layout;
  }
  const std::vector<LinearSpec> linears = LinearSpecs(run.model);
  const std::vector<SparsitySpec> initial = InitialSparsity(linears, run.phases[phase]);
  for (const LinearSpec& linear : linears) {
    const std::string weight = linear.name + ".weight";
    const SparsitySpec sparsity = MatchSparsity(weight, initial);
    const SparseLayout drawn =
        FindParameterisation(sparsity.parameterisation)->draw_layout(linear, sparsity, run.seed);
    if (drawn.logical_count() == 0) continue;  // factors alone
    const auto found = stored.find(weight);
    if (found == stored.end()) return InvalidInput(path + ": holds no " + weight);
    // An imported dense weight fits any layout.
    if (!checkpoint.has_moments && found->second->kind() == LayoutKind::kDense) continue;
    if (Describe(*found->second) == Describe(drawn)) continue;
    // Rules other than a random draw move counts, within the kind.
    const bool moves =
        FindTopologyRule(sparsity.rule)->entry == PhaseEntry::kInherit && !RowOf(sparsity).dense;
    if (moves && SameKind(*found->second, sparsity)) continue;
    return InvalidInput(path + ": " + weight + " is stored as " + Describe(*found->second) +
                        ", phase " + run.phases[phase].name + " of the config asks for " +
                        Describe(drawn) +
                        "; use the sparsity it was trained with, or choose another --out");
  }
  return OkStatus();
}

StatusOr<std::unique_ptr<CheckpointReader>> FindStart(const RunSpec& run,
                                                      const std::string& run_dir,
                                                      const std::string& resume) {
  std::string path;
  const std::string newest = NewestCheckpoint(run_dir);
  if (resume == "auto") {
    path = newest;
  } else if (resume == "none") {
    if (!newest.empty()) {
      return InvalidInput(
          run_dir + ": already holds checkpoints (" + newest +
          "); leave out --resume none to go on from there, or choose another --out");
    }
  } else {
    ASSIGN_OR_RETURN(path, ResolveCheckpoint(resume));
  }
  if (path.empty()) return std::unique_ptr<CheckpointReader>();
  auto reader = CheckpointReader::Open(path);
  if (reader.status().code() == StatusCode::kInvalidInput) {
    return InvalidInput(reader.status().message() +
                        " (`train --resume CHECKPOINT` goes on from that one, another --out begins "
                        "again)");
  }
  RETURN_IF_ERROR(reader.status());
  RETURN_IF_ERROR(CheckFits((*reader)->info(), run, path));
  return reader;
}

StatusOr<std::unique_ptr<CheckpointReader>> OpenInitialModel(const RunSpec& run) {
  ASSIGN_OR_RETURN(auto reader, OpenModel(run.init_from));
  const std::string& path = reader->directory();
  RETURN_IF_ERROR(CheckSameModel(reader->info().model, run.model, path,
                                 "make model { } say the same, or change init_from"));
  RETURN_IF_ERROR(CheckFactors(reader->info(), run, run.phases.front(), path, /*merges=*/true));
  for (const PhaseSpec& phase : run.phases) {
    RETURN_IF_ERROR(CheckTokenizerOfData(*reader, phase.data.prepared));
  }
  return reader;
}

std::map<std::string, SparseLayout> InitialLayouts(const CheckpointInfo& initial,
                                                   const RunSpec& run) {
  std::map<std::string, SparseLayout> layouts;
  for (const Parameter& parameter : initial.parameters) {
    layouts.emplace(parameter.name, parameter.layout);
  }
  return InheritedLayouts(LinearSpecs(run.model), run.phases.front(), layouts);
}

}  // namespace filigree

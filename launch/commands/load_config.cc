#include "launch/commands/load_config.h"

#include <sstream>

#include "trainer/linear/linear.h"
#include "trainer/model/model.h"
#include "trainer/pruning/saliency.h"
#include "trainer/pruning/validate.h"
#include "trainer/topology/criterion.h"
#include "trainer/topology/distribution.h"
#include "trainer/topology/plan.h"

namespace filigree {
namespace {

// Factors go on as they are, or are merged to a weight; a weight has no factors to go on with.
void CheckTransition(const ModelSpec& model, const PhaseSpec& from, const PhaseSpec& to,
                     std::ostringstream& problems) {
  for (const LinearSpec& linear : LinearSpecs(model)) {
    const std::string weight = linear.name + ".weight";
    const SparsitySpec before = MatchSparsity(weight, from.sparsity);
    const SparsitySpec after = MatchSparsity(weight, to.sparsity);
    const FactorKind had = FindParameterisation(before.parameterisation)->factors;
    const FactorKind has = FindParameterisation(after.parameterisation)->factors;
    const bool same = before.parameterisation == after.parameterisation &&
                      before.rank == after.rank &&
                      before.low_rank_scale() == after.low_rank_scale();
    if (has == FactorKind::kNone ? had != FactorKind::kNonlinear : same) continue;
    problems << (problems.tellp() > 0 ? "\n" : "") << "phase " << to.name << ": " << linear.name
             << " cannot go on from " << before.parameterisation << " as " << after.parameterisation
             << "; keep parameterisation, rank and alpha"
             << (had == FactorKind::kLowRank ? ", or take one without factors" : "");
    return;  // one linear is news enough
  }
}

}  // namespace

StatusOr<LoadedConfig> LoadCheckedConfig(const std::string& path,
                                         const std::vector<std::string>& overrides) {
  KnownNames known;
  for (const Parameterisation& row : Parameterisations()) {
    known.parameterisations.emplace_back(row.name);
  }
  known.rules.clear();
  for (const TopologyRule* row : TopologyRules()) {
    known.rules.emplace_back(row->name);
    known.rule_defaults[known.rules.back()] = row->defaults();
  }
  known.distributions.clear();
  for (const Distribution& row : Distributions()) known.distributions.emplace_back(row.name);
  known.criteria.clear();
  for (const Criterion& row : Criteria()) known.criteria.emplace_back(row.name);
  known.saliency_criteria.clear();
  for (const SaliencyCriterion& row : SaliencyCriteria()) {
    known.saliency_criteria.emplace_back(row.name);
  }
  ASSIGN_OR_RETURN(LoadedConfig config, LoadRunConfig(path, overrides, known));
  std::ostringstream problems;
  const std::vector<LinearSpec> linears = LinearSpecs(config.spec.model);
  for (const PhaseSpec& phase : config.spec.phases) {
    const Status weights = ValidateParameterisations(linears, phase);
    if (!weights.ok()) problems << (problems.tellp() > 0 ? "\n" : "") << weights.message();
  }
  const Status topology = ValidateTopology(config.spec, linears);
  if (!topology.ok()) problems << (problems.tellp() > 0 ? "\n" : "") << topology.message();
  const Status pruning = ValidatePruning(config.spec);
  if (!pruning.ok()) problems << (problems.tellp() > 0 ? "\n" : "") << pruning.message();
  for (size_t i = 1; i < config.spec.phases.size(); ++i) {
    CheckTransition(config.spec.model, config.spec.phases[i - 1], config.spec.phases[i], problems);
  }
  if (problems.tellp() > 0) return InvalidInput(path + ": " + problems.str());
  return config;
}

}  // namespace filigree

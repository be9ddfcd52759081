#include "launch/commands/load_config.h"

#include <sstream>

#include "trainer/linear/linear.h"
#include "trainer/model/model.h"
#include "trainer/topology/criterion.h"
#include "trainer/topology/distribution.h"
#include "trainer/topology/plan.h"

namespace filigree {
namespace {

// Weight by weight, what the registry has to say about a phase's sparsity.
void CheckPhase(const ModelSpec& model, const PhaseSpec& phase, std::ostringstream& problems) {
  const std::vector<LinearSpec> linears = LinearSpecs(model);
  const std::vector<SparsitySpec> initial = InitialSparsity(linears, phase);
  for (const LinearSpec& linear : linears) {
    const SparsitySpec sparsity = MatchSparsity(linear.name + ".weight", initial);
    const Parameterisation* row = FindParameterisation(sparsity.parameterisation);
    CHECK(row != nullptr) << sparsity.parameterisation;  // the parser knows the names
    if (const Status status = row->validate(linear, sparsity); !status.ok()) {
      problems << (problems.tellp() > 0 ? "\n" : "") << "phase " << phase.name << ": "
               << status.message();
    }
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
  ASSIGN_OR_RETURN(LoadedConfig config, LoadRunConfig(path, overrides, known));
  std::ostringstream problems;
  for (const PhaseSpec& phase : config.spec.phases) {
    CheckPhase(config.spec.model, phase, problems);
  }
  const Status topology = ValidateTopology(config.spec, LinearSpecs(config.spec.model));
  if (!topology.ok()) problems << (problems.tellp() > 0 ? "\n" : "") << topology.message();
  if (problems.tellp() > 0) return InvalidInput(path + ": " + problems.str());
  return config;
}

}  // namespace filigree

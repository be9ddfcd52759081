#include "trainer/topology/plan.h"

#include <algorithm>
#include <cctype>
#include <sstream>
#include <utility>

#include "trainer/topology/criterion.h"

namespace filigree {
namespace {

std::string WeightName(const LinearSpec& linear) { return linear.name + ".weight"; }

// What a message says beside the weight's name and the numbers in it.
std::string KindOf(const std::string& message) {
  std::string kind = message.substr(std::min(message.find(": "), message.size()));
  std::erase_if(kind, [](unsigned char c) { return std::isdigit(c) != 0; });
  return kind;
}

}  // namespace

double DrawnSparsity(const TopologyEntry& entry) {
  return entry.rule->entry == PhaseEntry::kDraw ? entry.spec.sparsity : entry.spec.initial_sparsity;
}

std::vector<WeightShape> ShapesOf(const TopologyEntry& entry) {
  std::vector<WeightShape> shapes;
  for (const LinearSpec& linear : entry.linears) shapes.push_back(ShapeOf(linear, entry.spec));
  return shapes;
}

StatisticsNeeds NeedsOf(std::span<const TopologyEntry> entries, const Timeline& timeline,
                        int64_t step) {
  StatisticsNeeds needs;
  for (const TopologyEntry& entry : entries) {
    if (!entry.rule->action(entry.spec, timeline, step)) continue;
    const Criterion& criterion = *FindCriterion(entry.spec.criterion);
    needs.grads |= criterion.needs_grads() || entry.rule->growth == Growth::kGradient;
    needs.hessian |= criterion.needs_hessian();
    needs.inputs |= criterion.needs_inputs();
  }
  return needs;
}

Timeline TimelineOf(const PhaseSpec& phase) {
  return {.steps = phase.steps, .tokens_per_step = phase.batch.tokens_per_step};
}

std::vector<TopologyEntry> EntriesOf(std::span<const LinearSpec> linears, const PhaseSpec& phase) {
  std::vector<TopologyEntry> entries;
  for (const SparsitySpec& spec : phase.sparsity) {
    TopologyEntry entry{.spec = spec, .rule = FindTopologyRule(spec.rule)};
    CHECK(entry.rule != nullptr) << spec.rule;  // the parser knows the names
    for (const LinearSpec& linear : linears) {
      if (MatchSparsity(WeightName(linear), phase.sparsity) == spec)
        entry.linears.push_back(linear);
    }
    const bool repeated = std::any_of(entries.begin(), entries.end(), [&](const TopologyEntry& e) {
      return e.spec == spec;  // the same entry twice: the first has taken its weights
    });
    if (!RowOf(spec).dense && !entry.linears.empty() && !repeated) {
      entries.push_back(std::move(entry));
    }
  }
  return entries;
}

std::vector<SparsitySpec> InitialSparsity(std::span<const LinearSpec> linears,
                                          const PhaseSpec& phase) {
  std::vector<SparsitySpec> expanded;
  for (const TopologyEntry& entry : EntriesOf(linears, phase)) {
    const std::vector<WeightShape> shapes = ShapesOf(entry);
    const std::vector<int64_t> counts = DrawnCounts(shapes, entry.spec, DrawnSparsity(entry));
    for (size_t i = 0; i < shapes.size(); ++i) {
      SparsitySpec own = entry.spec;
      own.include = {WeightName(entry.linears[i])};
      own.exclude = {};
      // Alike for all, each parameterisation rounds it in its own way.
      own.sparsity = SharesAlike(entry.spec) ? DrawnSparsity(entry)
                                             : 1 - static_cast<double>(counts[i]) /
                                                       static_cast<double>(shapes[i].units);
      expanded.push_back(std::move(own));
    }
  }
  return expanded;
}

Status ValidateParameterisations(std::span<const LinearSpec> linears, const PhaseSpec& phase) {
  std::vector<std::pair<std::string, int>> kinds;  // first messages, and how many more there are
  const std::vector<SparsitySpec> initial = InitialSparsity(linears, phase);
  for (const LinearSpec& linear : linears) {
    const SparsitySpec sparsity = MatchSparsity(WeightName(linear), initial);
    const Parameterisation* row = FindParameterisation(sparsity.parameterisation);
    CHECK(row != nullptr) << sparsity.parameterisation;  // the parser knows the names
    const Status status = row->validate(linear, sparsity);
    if (status.ok()) continue;
    const auto known = std::ranges::find_if(
        kinds, [&](const auto& kind) { return KindOf(kind.first) == KindOf(status.message()); });
    known == kinds.end() ? void(kinds.emplace_back(status.message(), 0)) : void(++known->second);
  }
  std::ostringstream problems;
  for (const auto& [message, more] : kinds) {
    problems << (problems.tellp() > 0 ? "\n" : "") << "phase " << phase.name << ": " << message;
    if (more > 0) problems << " (and so for " << more << " more weights)";
  }
  return problems.tellp() > 0 ? InvalidInput(problems.str()) : OkStatus();
}

bool SameKind(const SparseLayout& layout, const SparsitySpec& spec) {
  if (!StoresBlocks(spec)) return layout.kind() == LayoutKind::kUnstructured;
  return layout.kind() == LayoutKind::kBlocked && layout.block_out() == spec.block_out &&
         layout.block_in() == spec.block_in;
}

std::map<std::string, SparseLayout> InheritedLayouts(
    std::span<const LinearSpec> linears, const PhaseSpec& phase,
    const std::map<std::string, SparseLayout>& previous) {
  std::map<std::string, SparseLayout> inherited;
  for (const TopologyEntry& entry : EntriesOf(linears, phase)) {
    if (entry.rule->entry != PhaseEntry::kInherit) continue;
    for (const LinearSpec& linear : entry.linears) {
      const auto found = previous.find(WeightName(linear));
      if (found != previous.end() && SameKind(found->second, entry.spec)) inherited.insert(*found);
    }
  }
  return inherited;
}

bool TracksAges(const RunSpec& run, int phase) {
  if (phase > 0 && run.phases[phase].moments == Moments::kKeep) return true;
  const auto& entries = run.phases[phase].sparsity;
  return std::any_of(entries.begin(), entries.end(), [](const SparsitySpec& spec) {
    return FindTopologyRule(spec.rule)->growth != Growth::kNone;
  });
}

bool MovesTopology(const TopologyRule& rule) {
  return rule.action != FindTopologyRule("inherit")->action;
}

bool MovesTopology(const PhaseSpec& phase) {
  return std::any_of(phase.sparsity.begin(), phase.sparsity.end(), [](const SparsitySpec& spec) {
    return !RowOf(spec).dense && MovesTopology(*FindTopologyRule(spec.rule));
  });
}

}  // namespace filigree

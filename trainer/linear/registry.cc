#include <algorithm>
#include <array>

#include "trainer/linear/glob.h"
#include "trainer/linear/linear.h"
#include "trainer/linear/linear_parts.h"

namespace filigree {
namespace {

// What a sparsity entry without patterns means: attention and feed-forward matrices.
const std::vector<std::string>& DefaultInclude() {
  static const std::vector<std::string> patterns = {"layers.*.attention.*.weight",
                                                    "layers.*.mlp.*.weight"};
  return patterns;
}

bool AnyMatches(const std::vector<std::string>& patterns, std::string_view name) {
  return std::any_of(patterns.begin(), patterns.end(),
                     [&](const std::string& pattern) { return GlobMatches(pattern, name); });
}

}  // namespace

std::span<const Parameterisation> Parameterisations() {
  static const std::array rows = {kDenseParameterisation,
                                  kMaskedParameterisation,
                                  kBlockSparseParameterisation,
                                  kLowRankParameterisation,
                                  kSparsePlusLowRankParameterisation,
                                  kColaParameterisation,
                                  kNMParameterisation};
  return rows;
}

const Parameterisation* FindParameterisation(std::string_view name) {
  for (const Parameterisation& row : Parameterisations()) {
    if (row.name == name) return &row;
  }
  return nullptr;
}

SparsitySpec MatchSparsity(std::string_view weight_name,
                           const std::vector<SparsitySpec>& sparsity) {
  for (const SparsitySpec& spec : sparsity) {
    const auto& include = spec.include.empty() ? DefaultInclude() : spec.include;
    if (AnyMatches(include, weight_name) && !AnyMatches(spec.exclude, weight_name)) return spec;
  }
  return SparsitySpec{};  // dense
}

Parameter WeightParameter(const LinearSpec& spec, SparseLayout layout) {
  Parameter weight;
  weight.name = spec.name + ".weight";
  weight.shape = {spec.out, spec.in};
  weight.layout = std::move(layout);
  weight.decay = true;
  weight.sparsifiable = GlobMatches("layers.*", spec.name);
  weight.init_std = spec.init_std;
  return weight;
}

}  // namespace filigree

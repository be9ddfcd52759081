// What the tests of the topology engine share.
#pragma once

#include "trainer/topology/rule.h"

namespace filigree {

// A rule's defaults at this sparsity, on single weights.
inline SparsitySpec RuleSpec(const char* rule, double sparsity) {
  SparsitySpec spec = FindTopologyRule(rule)->defaults();
  spec.rule = rule;
  spec.parameterisation = "masked";
  spec.sparsity = sparsity;
  if (spec.initial_sparsity < 0) spec.initial_sparsity = sparsity;
  return spec;
}

}  // namespace filigree

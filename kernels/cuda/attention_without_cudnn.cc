#include "kernels/cuda/attention_plans.h"

namespace filigree {

struct AttentionPlans::Graphs {};

bool AttentionPlans::Available() { return false; }
AttentionPlans::AttentionPlans() = default;
AttentionPlans::~AttentionPlans() = default;

bool AttentionPlans::Forward(const AttentionArgs&, const AttentionShape&, const Workspace&,
                             cudaStream_t) {
  return false;
}
bool AttentionPlans::Backward(const AttentionBackwardArgs&, const AttentionShape&, bool,
                              const Workspace&, cudaStream_t) {
  return false;
}

}  // namespace filigree

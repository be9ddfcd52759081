#include "trainer/plan_memory.h"

#include <algorithm>

#include "comm/gradient_exchange.h"
#include "comm/link_model.h"
#include "kernels/base/math.h"
#include "kernels/planned/gpu_sizes.h"
#include "trainer/batch_feeder.h"
#include "trainer/optimizer.h"
#include "trainer/pruner.h"
#include "trainer/sample_tree.h"
#include "trainer/state_layout.h"
#include "trainer/topology/plan.h"

namespace filigree {
namespace {

bool IsGpu(const Device& device) { return device.name() == "cuda"; }

// Values and gradients, what carries them to other ranks included.
void AddExchanged(const StateBytes& state, const FlatLayout& layout, const RunSpec& run, int ranks,
                  const Device& device, std::map<std::string, int64_t>* bytes) {
  // Ranks of one host may copy each other's memory.
  const bool peers = IsGpu(device) && layout.shards() > 1 && HostsOf(run.link, ranks) == 1;
  const auto held = [&](int64_t array) { return peers ? AlignUp(array, kPeerMemoryPiece) : array; };
  (*bytes)["values"] = held(state.values);
  (*bytes)["grads"] = held(state.grads);
  if (ranks > 1 && run.wire_dtype != run.grad_dtype) {
    (*bytes)["grads"] += held(layout.total_count() * static_cast<int64_t>(SizeOf(run.wire_dtype)));
  }
  if (peers) (*bytes)["grads"] += held(LandingBytes(layout, run.wire_dtype));
}

// The backend's workspaces: one for the operation that needs most, and cuBLASLt's.
int64_t GpuScratch(const ModelSpec& model, const BatchSpec& batch, bool deterministic,
                   int64_t products) {
  const int64_t attention = EstimateAttentionScratch({.sequences = batch.micro_batch_sequences,
                                                      .seq_len = batch.seq_len,
                                                      .heads = model.heads,
                                                      .kv_heads = model.kv_heads,
                                                      .head_size = model.head_size},
                                                     deterministic);
  return kCublasWorkspaceBytes + std::max({kWorkspaceBytes, attention, products});
}

int64_t Largest(const std::vector<Parameter>& parameters) {
  int64_t largest = 0;
  for (const Parameter& parameter : parameters) {
    largest = std::max(largest, parameter.segment_count());
  }
  return largest;
}

}  // namespace

StepMemory PlanStepMemory(const Model& model, const FlatLayout& layout, const RunSpec& run,
                          int index, int ranks, const Device& device) {
  const PhaseSpec& phase = run.phases[index];
  const BatchSpec& batch = phase.batch;
  const StateBytes state =
      PredictStateBytes(layout, device.compute_dtype(), run.grad_dtype, phase.optimizer.state,
                        SlotsOf(run, index, ranks), TracksAges(run, index));
  const LinearMemory linears = model.linear_memory(layout);
  const PreparedLayout::StepUse products =
      model.linear_step_use(batch.micro_batch_sequences * batch.seq_len, layout);
  StepMemory memory;
  std::map<std::string, int64_t>& bytes = memory.bytes_by_kind;
  AddExchanged(state, layout, run, ranks, device, &bytes);
  bytes["master"] = state.master;
  bytes["moments"] = state.moments;
  bytes["layouts"] = linears.layout_bytes + products.held_bytes;
  bytes["compute_copies"] = linears.compute_copy_bytes;
  bytes["scratch"] = linears.scratch_bytes + Optimizer::ScratchBytes();
  for (const auto& [kind, held] : bytes) memory.state_bytes += held;
  bytes["activations"] =
      static_cast<int64_t>(
          model.ActivationBytes(batch.micro_batch_sequences, batch.seq_len, /*training=*/true)) +
      BatchFeeder::Bytes(batch.micro_batch_sequences, batch.seq_len, /*divergences=*/false);
  if (IsGpu(device)) {
    bytes["scratch"] += GpuScratch(model.spec(), batch, run.deterministic, products.scratch_bytes);
  }
  if (SumsInTree(run, device)) {
    bytes["scratch"] += SampleTree::NodesHeld(batch.sequences_per_step()) * bytes["grads"];
  }
  return memory;
}

int64_t PlanRemovalMemory(const std::vector<Parameter>& parameters, const RunSpec& run, int index,
                          int ranks) {
  const PhaseSpec& phase = run.phases[index];
  if (!phase.pruning) return 0;
  const int64_t collected = CollectedBytes(run.model, *phase.pruning);
  const bool whole = collected == 0 || run.zero_stage == 0 || ranks == 1;
  return collected + (whole ? 0 : Largest(parameters) * static_cast<int64_t>(sizeof(float)));
}

}  // namespace filigree

#include "trainer/sparsified_memory.h"

#include <algorithm>
#include <string>
#include <vector>

#include "trainer/state_layout.h"
#include "trainer/topology/plan.h"

namespace filigree {
namespace {

bool IsSparsified(const Parameter& parameter) {
  return parameter.layout.kind() != LayoutKind::kDense;
}

// The state of the sparsified weights if parameter i had counts[i] elements.
int64_t StateOf(const std::vector<Parameter>& parameters, const std::vector<int64_t>& counts,
                const RunSpec& run, int phase, int ranks, DType value_dtype) {
  std::vector<Parameter> weights;
  std::vector<int64_t> elements;
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (!IsSparsified(parameters[i])) continue;
    weights.push_back(parameters[i]);
    elements.push_back(counts[i]);
  }
  if (weights.empty()) return 0;
  const FlatLayout layout = LayOutSegments(SegmentsOf(weights, elements), run, ranks);
  const StateBytes state =
      PredictStateBytes(layout, value_dtype, run.grad_dtype, run.phases[phase].optimizer.state,
                        /*slots=*/{}, TracksAges(run, phase));
  const bool shared_grads = SlotsOf(run, phase, ranks).count > 0;
  return state.values + (shared_grads ? 0 : state.grads) + state.master + state.moments;
}

int64_t BytesOf(const MemoryUsage& usage, const std::string& kind) {
  const auto found = usage.bytes_by_kind.find(kind);
  return found == usage.bytes_by_kind.end() ? 0 : static_cast<int64_t>(found->second);
}

// Bytes of the arrays of one segment that this rank holds.
int64_t HeldBytes(const FlatBuffer& buffer, int segment) {
  size_t bytes = buffer.Values(segment).bytes();
  if (buffer.slots().count == 0) bytes += buffer.Grads(segment).bytes();
  const OwnedRange own = buffer.layout().Owned(segment, buffer.shard());
  if (own.count == 0) return static_cast<int64_t>(bytes);
  if (buffer.has_master()) bytes += buffer.Master(own).bytes();
  if (buffer.has_born()) bytes += buffer.Born(own).bytes();
  const MomentViews moments = buffer.Moments(own);
  for (const TensorView& array : {moments.m, moments.v, moments.m_scale, moments.v_scale}) {
    bytes += array.bytes();
  }
  return static_cast<int64_t>(bytes);
}

}  // namespace

SparsifiedMemory PlanSparsifiedMemory(const Model& model, const RunSpec& run, int phase, int ranks,
                                      const Device& device) {
  const std::vector<Parameter>& parameters = model.parameters();
  std::vector<int64_t> logical;
  for (const Parameter& parameter : parameters) logical.push_back(parameter.logical_count());
  const auto state = [&](const std::vector<int64_t>& counts) {
    return StateOf(parameters, counts, run, phase, ranks, device.compute_dtype());
  };
  const FlatLayout layout = LayOutParameters(parameters, run, ranks);
  const LinearMemory linears = model.linear_memory(layout);
  const BatchSpec& batch = run.phases[phase].batch;
  const int64_t work_lists =
      model.linear_step_use(batch.micro_batch_sequences * batch.seq_len, layout).held_bytes;
  return {.state = state(SegmentCounts(parameters)),
          .dense_state = state(logical),
          .compute_copies = linears.compute_copy_bytes,
          .indices = linears.layout_bytes + work_lists,
          .gradient_scratch = linears.scratch_bytes};
}

SparsifiedMemory CountSparsifiedMemory(TrainingState& state, const RunSpec& run, int ranks,
                                       const Device& device) {
  SparsifiedMemory memory = PlanSparsifiedMemory(state.model(), run, state.phase(), ranks, device);
  memory.state = 0;
  for (size_t i = 0; i < state.parameters().size(); ++i) {
    if (!IsSparsified(state.parameters()[i])) continue;
    memory.state += HeldBytes(state.buffer(), static_cast<int>(i));
  }
  const MemoryUsage usage = device.memory_usage();
  memory.compute_copies = BytesOf(usage, "compute_copies");
  // A CPU's indices are in no device's account; a GPU's holds those of joined weights too.
  memory.indices = std::max(memory.indices, BytesOf(usage, "layouts"));
  return memory;
}

}  // namespace filigree

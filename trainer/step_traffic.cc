#include "trainer/step_traffic.h"

#include "trainer/sample_tree.h"

namespace filigree {
namespace {

constexpr auto kScalar = static_cast<int64_t>(sizeof(double));

}  // namespace

int ScalarReductionsPerStep(const RunSpec& run) { return run.zero_stage == 1 ? 3 : 2; }

int64_t ControlBytesPerStep(const RunSpec& run, int ranks) {
  if (ranks == 1) return 0;
  return (1 + ScalarReductionsPerStep(run)) * kScalar;  // the first reduction has two
}

ExchangedBytes PredictStepBytes(const RunSpec& run, int phase, int ranks, const FlatLayout& layout,
                                const Device& device) {
  ExchangedBytes bytes =
      PredictExchangedBytes(layout, ranks, device.compute_dtype(), run.wire_dtype);
  bytes.control = ControlBytesPerStep(run, ranks);
  if (ranks == 1 || !SumsInTree(run, device)) return bytes;
  const int64_t sent = SampleTree::NodesSent(run.phases[phase].batch.sequences_per_step(), ranks);
  bytes.sparsified_grads *= sent;
  bytes.dense_grads *= sent;
  // Each node brings its loss; every rank has all gradients, so the norm needs no reduction.
  bytes.control += sent * kScalar - (run.zero_stage == 1 ? kScalar : 0);
  return bytes;
}

}  // namespace filigree

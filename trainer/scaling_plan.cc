#include "trainer/scaling_plan.h"

#include <algorithm>
#include <memory>

#include "kernels/base/math.h"
#include "trainer/model/model.h"
#include "trainer/planner.h"
#include "trainer/state_layout.h"

namespace filigree {
namespace {

constexpr int kFewestGpus = 8, kMostGpus = 4096;

bool IsLookup(const Parameter& parameter) {
  return parameter.name == "embedding.weight" || parameter.name == "position_embedding.weight";
}

// Weights that a product with this parameter multiplies.
double CostOf(const Parameter& parameter) {
  if (parameter.shape.size() < 2 || IsLookup(parameter)) return 0;
  const bool blocked = parameter.layout.kind() == LayoutKind::kBlocked;
  return static_cast<double>(blocked ? parameter.layout.stored_count() : parameter.logical_count());
}

// The fraction of a forward pass that is done when it comes to each parameter. Backward runs the
// other way, so a parameter's gradient is final when 1 - this fraction is done.
std::vector<double> ForwardFractions(const std::vector<Parameter>& parameters, bool tied_head) {
  std::vector<double> before;
  double total = 0;
  for (const Parameter& parameter : parameters) {
    before.push_back(total);
    total += CostOf(parameter);
  }
  if (tied_head) total += static_cast<double>(parameters.front().logical_count());
  for (double& fraction : before) fraction = total > 0 ? fraction / total : 0;
  return before;
}

}  // namespace

StepExchange ExchangeOfStep(const std::vector<Parameter>& parameters, bool tied_head,
                            const FlatLayout& layout, DType value_dtype, DType wire_dtype,
                            int scalar_reductions) {
  const std::vector<double> fractions = ForwardFractions(parameters, tied_head);
  const bool sharded = layout.shards() > 1;
  StepExchange exchange;
  exchange.scalar_reductions = scalar_reductions;
  for (const Bucket& bucket : layout.buckets()) {
    // Segments of a bucket are in order of creation: its first one is needed first and ready last.
    const double first = fractions[bucket.segments.front()];
    const auto count = static_cast<double>(bucket.count);
    exchange.backward.push_back(
        {.collective = sharded ? Collective::kReduceScatter : Collective::kAllReduce,
         .bytes = count * static_cast<double>(SizeOf(wire_dtype)),
         .at = 1 - first});
    if (!sharded) continue;
    exchange.forward.push_back({.collective = Collective::kAllGather,
                                .bytes = count * static_cast<double>(SizeOf(value_dtype)),
                                .at = first});
  }
  std::reverse(exchange.backward.begin(), exchange.backward.end());
  return exchange;
}

int MicroBatchesOf(const RunSpec& run, int ranks) {
  const BatchSpec& batch = run.phases.front().batch;
  const int64_t sequences = CeilDiv(batch.sequences_per_step(), ranks);
  return static_cast<int>(CeilDiv(sequences, batch.micro_batch_sequences));
}

std::vector<ScalingPoint> PlanScaling(const RunSpec& run, int ranks, double step_seconds,
                                      double jitter, Backend& backend) {
  constexpr DType kValues = DType::kBF16;
  const auto model = Model::Create(run.model, run.phases.front().sparsity, run.seed, {}, backend);
  const ComputeTimes compute = {
      .step_seconds = step_seconds, .micro_batches = MicroBatchesOf(run, ranks), .jitter = jitter};
  std::vector<ScalingPoint> points;
  for (int gpus = kFewestGpus; gpus <= kMostGpus; gpus *= 2) {
    const FlatLayout layout = LayOutParameters(model->parameters(), run, gpus);
    const StepExchange exchange =
        ExchangeOfStep(model->parameters(), run.model.tied_head, layout, kValues, run.wire_dtype,
                       ScalarReductionsPerStep(run));
    ScalingPoint point;
    point.gpus = gpus;
    point.bucket_bytes = BucketBytes(model->parameters(), run, gpus);
    point.buckets = static_cast<int>(layout.buckets().size());
    point.exchanged_bytes = PredictExchangedBytes(layout, gpus, kValues, run.wire_dtype).total() +
                            ControlBytesPerStep(run, gpus);
    point.step = PredictStep(run.link, compute, exchange, gpus);
    points.push_back(point);
  }
  return points;
}

}  // namespace filigree

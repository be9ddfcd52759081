#include "trainer/step_batches.h"

#include <algorithm>
#include <utility>

#include "trainer/agree.h"
#include "trainer/stop_signal.h"

namespace filigree {

Status StepBatches::Open(const PhaseSpec& phase, const ModelSpec& model, uint64_t seed) {
  auto data = OpenPhaseData(phase, model, seed);
  RETURN_IF_ERROR(AgreeOnStatus(data.status(), communicator_));
  prefetcher_.reset();
  sequences_ = phase.batch.sequences_per_step();
  data_ = std::move(data).value();
  prefetcher_ = std::make_unique<Prefetcher>(data_.train.get());
  return OkStatus();
}

bool StepBatches::Take(int64_t step, bool reads_ahead, GradientExchange& exchange) {
  const SampleRange mine = PartitionSamples(sequences_, communicator_.rank(), communicator_.size());
  const int64_t first = step * sequences_ + mine.begin;
  batch_ = &prefetcher_->Take(first, mine.count);
  if (reads_ahead) prefetcher_->Request(first + sequences_, mine.count);
  const auto valid = std::count_if(batch_->targets.begin(), batch_->targets.end(),
                                   [](int32_t target) { return target >= 0; });
  double sums[] = {static_cast<double>(valid), StopRequested() ? 1.0 : 0.0};
  communicator_.AllReduceHost(sums, ReduceOp::kSum);
  exchange.CountControl(sizeof(sums));
  valid_tokens_ = sums[0];
  return sums[1] == 0;
}

}  // namespace filigree

// The data of the phase that a run is in, step by step: this rank's samples of each.
#pragma once

#include <cstdint>
#include <memory>

#include "comm/communicator.h"
#include "comm/gradient_exchange.h"
#include "data/data_loader.h"
#include "kernels/base/status.h"
#include "trainer/phase_data.h"
#include "trainer/spec.h"
#include "trainer/train_step.h"

namespace filigree {

class StepBatches {
 public:
  // `communicator` must outlive the object.
  explicit StepBatches(Communicator& communicator) : communicator_(communicator) {}

  // The data of `phase`; what was open before is closed. Collective: all ranks return the same
  // status.
  Status Open(const PhaseSpec& phase, const ModelSpec& model, uint64_t seed);
  void Close() { prefetcher_.reset(); }
  bool open() const { return prefetcher_ != nullptr; }

  // Reads the samples of the phase's step `step`, the first being 0 (more where the phase goes on
  // from a later one in its data), and counts the targets over all ranks, as control of `exchange`.
  // `reads_ahead`: the next call will be for the next step. False: some rank was asked to stop.
  // Collective.
  bool Take(int64_t step, bool reads_ahead, GradientExchange& exchange);
  // What was taken last, valid until the next time. Without statistics.
  StepSamples samples() const {
    return {.tokens = batch_->tokens.data(),
            .targets = batch_->targets.data(),
            .sequences = batch_->count,
            .valid_tokens = valid_tokens_};
  }
  // Targets of it that count, over all ranks.
  double valid_tokens() const { return valid_tokens_; }

  const DataLoader& train() const { return *data_.train; }
  const DataLoader* validation() const { return data_.validation.get(); }  // nullptr: none

 private:
  Communicator& communicator_;
  int64_t sequences_ = 0;  // of a step, over all ranks
  PhaseData data_;
  std::unique_ptr<Prefetcher> prefetcher_;
  const SampleBatch* batch_ = nullptr;
  double valid_tokens_ = 0;
};

}  // namespace filigree

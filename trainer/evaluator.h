// Validation loss: the mean over tokens, not over batches, unless the published formula is asked
// for.
#pragma once

#include <cstdint>

#include "comm/communicator.h"
#include "data/data_loader.h"
#include "kernels/backend.h"
#include "trainer/batch_feeder.h"
#include "trainer/model/model.h"
#include "trainer/spec.h"

namespace filigree {

struct EvaluationResult {
  double loss_sum = 0;  // nats, over the tokens that count
  int64_t tokens = 0;
  double sltrain_loss = 0;  // LossFormula::kSltrain
  LossFormula formula = LossFormula::kTokenMean;
  double loss() const;  // by the formula
  double perplexity() const;
};

// The loss over the first samples of `data` (in file order, about `max_tokens` of them; 0: one
// epoch), in micro-batches of `sequences` rows, which `model` must have reserved. The ranks share
// the samples and return the same result. Collective.
EvaluationResult Evaluate(Model& model, const DataLoader& data, int64_t max_tokens,
                          int64_t sequences, LossFormula formula, BatchFeeder& feeder,
                          Communicator& communicator, Stream& stream);

}  // namespace filigree

#include "trainer/evaluator.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/base/progress.h"

namespace filigree {

double EvaluationResult::loss() const {
  if (formula == LossFormula::kSltrain && tokens > 0) return sltrain_loss;
  return tokens > 0 ? loss_sum / tokens : std::numeric_limits<double>::quiet_NaN();
}

double EvaluationResult::perplexity() const { return std::exp(loss()); }

EvaluationResult Evaluate(Model& model, const DataLoader& data, int64_t max_tokens,
                          int64_t sequences, LossFormula formula, BatchFeeder& feeder,
                          Communicator& communicator, Stream& stream) {
  const int64_t seq_len = data.seq_len();
  int64_t samples = data.samples_per_epoch();
  if (max_tokens > 0) samples = std::min(samples, std::max<int64_t>(1, max_tokens / seq_len));
  const SampleRange mine = PartitionSamples(samples, communicator.rank(), communicator.size());

  double loss_sum = 0, sum_of_means = 0;
  int64_t valid = 0, batches = 0;
  std::vector<int32_t> tokens(sequences * seq_len), targets(sequences * seq_len);
  for (int64_t done = 0; done < mine.count; done += sequences, ++batches) {
    const int64_t rows = std::min(sequences, mine.count - done);
    data.ReadSamples(mine.begin + done, rows, tokens.data(), targets.data());
    const MicroBatch batch = feeder.Feed(tokens.data(), targets.data(), rows, seq_len, stream);
    model.ForwardLoss(batch, feeder.Losses(rows, seq_len), stream);
    feeder.FetchLosses(rows * seq_len, stream);
    const double batch_loss = feeder.TakeLosses();
    const auto batch_valid = std::count_if(targets.begin(), targets.begin() + rows * seq_len,
                                           [](int32_t target) { return target >= 0; });
    loss_sum += batch_loss;
    valid += batch_valid;
    if (batch_valid > 0) sum_of_means += batch_loss / static_cast<double>(batch_valid);
    ReportProgress();
  }
  double sums[] = {loss_sum, static_cast<double>(valid),
                   sum_of_means / static_cast<double>(batches + 1), batches > 0 ? 1.0 : 0.0};
  communicator.AllReduceHost(sums, ReduceOp::kSum);
  return {.loss_sum = sums[0],
          .tokens = static_cast<int64_t>(sums[1]),
          .sltrain_loss = sums[2] / std::max(sums[3], 1.0),
          .formula = formula};
}

}  // namespace filigree

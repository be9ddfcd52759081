// Saliency against brute force: on a small trained model every unit is removed in turn, and the
// order of the true changes of the loss is compared with that of the scores.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <numeric>
#include <vector>

#include "comm/bootstrap.h"
#include "tests/unit/pruning_testing.h"
#include "trainer/pruning/saliency.h"
#include "trainer/pruning/second_order.h"
#include "trainer/unit_arrays.h"

namespace filigree {
namespace {

constexpr int64_t kSeqLen = 16, kSequences = 8, kSteps = 800;
constexpr int64_t kHeldOut = 100000;  // steps whose samples are not trained on
constexpr int kBatches = 96;          // of saliency
constexpr int kEvaluations = 32;      // batches of the true loss

RunSpec SmallRun() {
  RunSpec run;
  run.seed = 7;
  run.model = {.layers = 2,
               .width = 32,
               .heads = 8,
               .kv_heads = 8,
               .head_size = 8,
               .feed_forward = 64,
               .vocab_size = 29,
               .padded_vocab_size = 32,
               .max_positions = kSeqLen};
  PhaseSpec phase;
  phase.name = "only";
  phase.steps = kSteps;
  phase.batch = {.seq_len = kSeqLen,
                 .tokens_per_step = kSeqLen * kSequences,
                 .micro_batch_sequences = kSequences};
  run.phases = {phase};
  return run;
}

std::vector<double> Ranks(const std::vector<double>& values) {
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return values[a] < values[b]; });
  std::vector<double> ranks(values.size());
  for (size_t i = 0; i < order.size(); ++i) ranks[order[i]] = static_cast<double>(i);
  return ranks;
}

// Spearman's rank correlation.
double RankCorrelation(const std::vector<double>& a, const std::vector<double>& b) {
  const std::vector<double> x = Ranks(a), y = Ranks(b);
  const double mean = static_cast<double>(x.size() - 1) / 2;
  double covariance = 0, variance = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    covariance += (x[i] - mean) * (y[i] - mean);
    variance += (x[i] - mean) * (x[i] - mean);
  }
  return covariance / variance;
}

class SaliencyTest : public ::testing::Test {
 protected:
  SaliencyTest() : run_(SmallRun()), table_(run_.model), trainee_(run_, *world_, 1, kSequences) {
    trainee_.state().InitializeValues(trainee_.stream());
    for (int64_t step = 0; step < kSteps; ++step) {
      const double progress = static_cast<double>(step) / kSteps;
      trainee_.Step(0.004 * (1 - 0.9 * progress), step);
    }
  }

  // Mean loss of a token of held-out samples.
  double Loss() {
    double sum = 0;
    for (int i = 0; i < kEvaluations; ++i) sum += trainee_.Gradients(kHeldOut + i);
    return sum / (kEvaluations * trainee_.tokens_per_step());
  }

  void Remove(const std::vector<int64_t>& units) {
    std::vector<float> factors(static_cast<size_t>(table_.unit_count()), 1.0f);
    for (const int64_t unit : units) factors[static_cast<size_t>(unit)] = 0;
    ScaleUnits(trainee_.state(), table_, factors, trainee_.backend(), trainee_.stream());
  }

  // The masters of all parameters, and back.
  std::vector<std::vector<float>> Save() {
    std::vector<std::vector<float>> saved;
    for (size_t p = 0; p < trainee_.state().parameters().size(); ++p) {
      saved.push_back(trainee_.Gather(static_cast<int>(p), StateKind::kMaster));
    }
    return saved;
  }
  void Write(size_t parameter, const std::vector<float>& values) {
    ScatterSegment(trainee_.state().buffer(), static_cast<int>(parameter), StateKind::kMaster,
                   std::as_bytes(std::span<const float>(values)), trainee_.stream());
    trainee_.state().model().ValuesChanged();
  }

  // The true change of the loss by removing each unit.
  std::vector<double> BruteForce() {
    const double before = Loss();
    const std::vector<std::vector<float>> saved = Save();
    std::vector<double> changes;
    for (int64_t unit = 0; unit < table_.unit_count(); ++unit) {
      Remove({unit});
      changes.push_back(Loss() - before);
      for (size_t p = 0; p < saved.size(); ++p) Write(p, saved[p]);
    }
    return changes;
  }

  const std::unique_ptr<Communicator> world_ = MakeSingleProcessCommunicator();
  const RunSpec run_;
  const UnitTable table_;
  PruningTrainee trainee_;
};

TEST_F(SaliencyTest, ScoresFollowTheTrueLossBetterThanMagnitude) {
  PruningProgress progress;
  progress.smoothed.assign(static_cast<size_t>(table_.unit_count() * kSmoothed), 0.0);
  int64_t bytes = 0;
  for (int i = 0; i < kBatches; ++i) {
    std::map<std::string, std::vector<double>> squares;
    std::map<std::string, LinearStatistics> requests;
    for (const LinearSpec& linear : LinearSpecs(run_.model)) {
      squares[linear.name + ".weight"].assign(static_cast<size_t>(linear.in), 0.0);
      requests[linear.name + ".weight"].input_squares = &squares[linear.name + ".weight"];
    }
    trainee_.state().model().CollectStatistics(requests);
    trainee_.Gradients(2 * kHeldOut + i);
    trainee_.state().model().CollectStatistics({});
    SaliencyBatch batch;
    for (const UnitSums& sums : SumUnits(trainee_.state(), table_, UnitCells::kGate, *world_,
                                         trainee_.backend(), trainee_.stream(), &bytes)) {
      batch.units.push_back(
          {.gate = sums.gw, .gate_squares = sums.gw * sums.gw, .cell_squares = sums.gw_squares});
    }
    for (const auto& [weight, columns] : squares) {
      const AxisUnits& axis = table_.parameters().at(weight).columns;
      const int64_t first = table_.sets()[axis.set].first;
      for (size_t c = 0; c < columns.size(); ++c) {
        batch.units[static_cast<size_t>(first + static_cast<int64_t>(c) / axis.extent)]
            .input_squares += columns[c];
      }
    }
    Smooth(batch, /*smoothing=*/0.999, /*outlier_factor=*/100, &progress);
  }
  std::vector<double> w_squares;
  for (const UnitSums& sums : SumUnits(trainee_.state(), table_, UnitCells::kAll, *world_,
                                       trainee_.backend(), trainee_.stream(), &bytes)) {
    w_squares.push_back(sums.w_squares);
  }
  EXPECT_EQ(bytes, 0);

  const std::vector<double> changes = BruteForce();
  std::map<std::string, std::map<UnitKind, double>> correlations;
  for (const SaliencyCriterion& criterion : SaliencyCriteria()) {
    const std::vector<double> scores = SaliencyScores(criterion, table_, progress, w_squares,
                                                      trainee_.tokens_per_step());
    for (const UnitKind kind : {UnitKind::kAttention, UnitKind::kFeedForward, UnitKind::kStem}) {
      std::vector<double> of_kind, true_change;
      for (const UnitSet& set : table_.sets()) {
        if (set.kind != kind) continue;
        for (int64_t unit = set.first; unit < set.first + set.count; ++unit) {
          of_kind.push_back(scores[static_cast<size_t>(unit)]);
          true_change.push_back(changes[static_cast<size_t>(unit)]);
        }
      }
      const double correlation = RankCorrelation(of_kind, true_change);
      correlations[std::string(criterion.name)][kind] = correlation;
      std::printf("rank correlation of %-16s %-12s over %3zu units: %6.3f\n",
                  std::string(criterion.name).c_str(), NameOf(kind), of_kind.size(), correlation);
      RecordProperty(std::string(criterion.name) + "_" + NameOf(kind), std::to_string(correlation));
    }
  }
  for (const UnitKind kind : {UnitKind::kAttention, UnitKind::kFeedForward, UnitKind::kStem}) {
    SCOPED_TRACE(NameOf(kind));
    EXPECT_GT(correlations["taylor_second"][kind], correlations["magnitude"][kind]);
    EXPECT_GT(correlations["taylor_second"][kind], 0.5);
  }
}

// A quarter of each layer's feed-forward channels goes; down's other columns take over, or not.
TEST_F(SaliencyTest, TheSecondOrderUpdateLowersTheLossOfRemoval) {
  const int64_t channels = run_.model.feed_forward;
  std::map<std::string, std::vector<float>> grams;
  std::map<std::string, LinearStatistics> requests;
  for (int64_t layer = 0; layer < run_.model.layers; ++layer) {
    const std::string name = "layers." + std::to_string(layer) + ".mlp.down.weight";
    grams[name].assign(static_cast<size_t>(channels * channels), 0.0f);
    requests[name].input_grams = {
        {.begin = 0, .gram = TensorView(grams[name].data(), DType::kF32, {channels, channels})}};
  }
  trainee_.state().model().CollectStatistics(requests);
  for (int i = 0; i < 4; ++i) trainee_.Gradients(2 * kHeldOut + i);
  trainee_.state().model().CollectStatistics({});

  std::vector<int64_t> gone, units;
  for (int64_t c = 1; c < channels; c += 4) gone.push_back(c);
  for (const UnitSet& set : table_.sets()) {
    if (set.kind != UnitKind::kFeedForward) continue;
    for (const int64_t c : gone) units.push_back(set.first + c);
  }
  const double before = Loss();
  const std::vector<std::vector<float>> saved = Save();
  Remove(units);
  const double without = Loss();
  for (size_t p = 0; p < saved.size(); ++p) {
    std::vector<float> values = saved[p];
    const Parameter& parameter = trainee_.state().parameters()[p];
    if (const auto gram = grams.find(parameter.name); gram != grams.end()) {
      ASSERT_TRUE(CompensateColumns(values, parameter.layout.out(), parameter.layout.row_pitch(), 0,
                                    gram->second, channels, gone, /*damping=*/0.01));
    }
    Write(p, values);
  }
  Remove(units);
  const double with = Loss();
  std::printf("loss %.4f, without the removed %.4f, with the update %.4f\n", before, without, with);
  EXPECT_GT(without, before);
  EXPECT_LT(with - before, 0.8 * (without - before));
}

}  // namespace
}  // namespace filigree

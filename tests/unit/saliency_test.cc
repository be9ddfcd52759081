// Saliency against brute force: on small trained models every unit is removed in turn, and the
// order of the true changes of the loss is compared with that of the scores.
#include "trainer/pruning/saliency.h"

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
#include "trainer/pruning/second_order.h"
#include "trainer/unit_arrays.h"

namespace filigree {
namespace {

constexpr int64_t kSeqLen = 16, kSequences = 8, kSteps = 1500;
constexpr int64_t kHeldOut = 100000;  // steps whose samples are not trained on
constexpr int kBatches = 96;          // of saliency
constexpr int kEvaluations = 32;      // batches of the true loss
constexpr int kGramBatches = 4;       // of inputs for the second-order update
constexpr uint64_t kSeeds[] = {11, 12, 13, 14, 15};

RunSpec SmallRun(uint64_t seed) {
  RunSpec run;
  run.seed = seed;
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

double Mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// Trained on a language of its seed's, from weights of its seed's.
class TrainedModel {
 public:
  explicit TrainedModel(uint64_t seed)
      : run_(SmallRun(seed)), table_(run_.model), trainee_(run_, *world_, 1, kSequences) {
    trainee_.state().InitializeValues(trainee_.stream());
    for (int64_t step = 0; step < kSteps; ++step) {
      const double progress = static_cast<double>(step) / kSteps;
      trainee_.Step(0.004 * (1 - 0.9 * progress), step);
    }
  }

  const RunSpec& run() const { return run_; }
  const UnitTable& table() const { return table_; }
  PruningTrainee& trainee() { return trainee_; }

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

  // The scores of a criterion, of what `kBatches` of held-out batches say.
  std::vector<double> Scores(const SaliencyCriterion& criterion);

  // Removes `units`, whose inputs to the matrices in `updated` stood in `kGramBatches` batches; the
  // columns that stay take over, or not. Returns the loss and leaves the model as it was.
  double LossWithout(const std::vector<int64_t>& units, const std::vector<std::string>& updated);

 private:
  void GatherSaliency();
  std::map<std::string, std::vector<float>> Grams(const std::vector<std::string>& weights);

  const std::unique_ptr<Communicator> world_ = MakeSingleProcessCommunicator();
  const RunSpec run_;
  const UnitTable table_;
  PruningTrainee trainee_;
  PruningProgress progress_;
  std::vector<double> w_squares_;
};

void TrainedModel::GatherSaliency() {
  progress_.smoothed.assign(static_cast<size_t>(table_.unit_count() * kSmoothed), 0.0);
  progress_.zero_at.assign(static_cast<size_t>(table_.unit_count()), kUnitStays);
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
    Smooth(batch, /*smoothing=*/0.999, /*outlier_factor=*/100, &progress_);
  }
  for (const UnitSums& sums : SumUnits(trainee_.state(), table_, UnitCells::kAll, *world_,
                                       trainee_.backend(), trainee_.stream(), &bytes)) {
    w_squares_.push_back(sums.w_squares);
  }
  EXPECT_EQ(bytes, 0);
}

std::vector<double> TrainedModel::Scores(const SaliencyCriterion& criterion) {
  if (w_squares_.empty()) GatherSaliency();
  return SaliencyScores(criterion, table_, progress_, w_squares_, trainee_.tokens_per_step());
}

std::map<std::string, std::vector<float>> TrainedModel::Grams(
    const std::vector<std::string>& weights) {
  std::map<std::string, std::vector<float>> grams;
  std::map<std::string, LinearStatistics> requests;
  for (const std::string& name : weights) {
    const int64_t columns = table_.parameters().at(name).column_count;
    grams[name].assign(static_cast<size_t>(columns * columns), 0.0f);
    requests[name].input_grams = {
        {.begin = 0, .gram = TensorView(grams[name].data(), DType::kF32, {columns, columns})}};
  }
  trainee_.state().model().CollectStatistics(requests);
  for (int i = 0; i < kGramBatches; ++i) trainee_.Gradients(2 * kHeldOut + i);
  trainee_.state().model().CollectStatistics({});
  return grams;
}

double TrainedModel::LossWithout(const std::vector<int64_t>& units,
                                 const std::vector<std::string>& updated) {
  const std::map<std::string, std::vector<float>> grams = Grams(updated);
  const std::vector<std::vector<float>> saved = Save();
  for (size_t p = 0; p < saved.size(); ++p) {
    const Parameter& parameter = trainee_.state().parameters()[p];
    const auto gram = grams.find(parameter.name);
    if (gram == grams.end()) continue;
    const ParameterUnits& cells = table_.parameters().at(parameter.name);
    const UnitSet& set = table_.sets()[cells.columns.set];
    std::vector<int64_t> gone;
    for (const int64_t unit : units) {
      if (unit < set.first || unit >= set.first + set.count) continue;
      for (int64_t i = 0; i < cells.columns.extent; ++i) {
        gone.push_back((unit - set.first) * cells.columns.extent + i);
      }
    }
    std::vector<float> values = saved[p];
    EXPECT_TRUE(CompensateColumns(values, parameter.layout.out(), parameter.layout.row_pitch(), 0,
                                  gram->second, cells.column_count, gone, /*damping=*/0.01));
    Write(p, values);
  }
  Remove(units);
  const double loss = Loss();
  for (size_t p = 0; p < saved.size(); ++p) Write(p, saved[p]);
  return loss;
}

constexpr UnitKind kKinds[] = {UnitKind::kAttention, UnitKind::kFeedForward, UnitKind::kStem};

// Over the units of one kind.
// Trained at its first use; what the tests do to a model they undo.
TrainedModel& Trained(uint64_t seed) {
  static auto& models = *new std::map<uint64_t, TrainedModel>;
  return models.try_emplace(seed, seed).first->second;
}

double CorrelationOf(UnitKind kind, const UnitTable& table, const std::vector<double>& scores,
                     const std::vector<double>& changes) {
  std::vector<double> of_kind, true_change;
  for (const UnitSet& set : table.sets()) {
    if (set.kind != kind) continue;
    for (int64_t unit = set.first; unit < set.first + set.count; ++unit) {
      of_kind.push_back(scores[static_cast<size_t>(unit)]);
      true_change.push_back(changes[static_cast<size_t>(unit)]);
    }
  }
  return RankCorrelation(of_kind, true_change);
}

// What is claimed is a statement over seeds (docs/results/pruning_saliency.md). By chance a mean
// over five seeds has a standard deviation of 0.12 for 16 heads, 0.04 for 128 channels, 0.08 for
// the stem's 32. For stem channels magnitude does about as well here: nothing is claimed beside it.
TEST(SaliencyTest, ScoresFollowTheTrueLossBetterThanMagnitude) {
  std::map<std::pair<std::string, UnitKind>, std::vector<double>> found;  // by seed
  for (const uint64_t seed : kSeeds) {
    TrainedModel& model = Trained(seed);
    const std::vector<double> changes = model.BruteForce();
    for (const SaliencyCriterion& criterion : SaliencyCriteria()) {
      const std::vector<double> scores = model.Scores(criterion);
      for (const UnitKind kind : kKinds) {
        found[{std::string(criterion.name), kind}].push_back(
            CorrelationOf(kind, model.table(), scores, changes));
      }
    }
  }
  for (const auto& [key, correlations] : found) {
    std::printf("rank correlation of %-16s %-12s mean %6.3f, by seed:", key.first.c_str(),
                NameOf(key.second), Mean(correlations));
    for (const double correlation : correlations) std::printf(" %6.3f", correlation);
    std::printf("\n");
    RecordProperty(key.first + "_" + NameOf(key.second), std::to_string(Mean(correlations)));
  }
  for (const UnitKind kind : kKinds) {
    SCOPED_TRACE(NameOf(kind));
    const std::vector<double>&taylor = found[{"taylor_second", kind}],
          &magnitude = found[{"magnitude", kind}];
    int wins = 0;
    for (size_t i = 0; i < taylor.size(); ++i) wins += taylor[i] > magnitude[i];
    std::printf("taylor_second beats magnitude for %s with %d of %zu seeds\n", NameOf(kind), wins,
                taylor.size());
    EXPECT_GT(Mean(taylor), 0.35);
    if (kind == UnitKind::kStem) continue;
    EXPECT_GT(Mean(taylor), Mean(magnitude) + 0.1);
    EXPECT_GT(2 * wins, static_cast<int>(taylor.size()));
  }
}

// Half of each layer's feed-forward channels go, or a quarter of its heads, whatever their scores;
// the other columns of down, or of o, take over, or not.
TEST(SaliencyTest, TheSecondOrderUpdateLowersTheLossOfRemoval) {
  struct Removal {
    UnitKind kind;
    int64_t every;
    const char* matrix;
  };
  for (const Removal& removal : {Removal{UnitKind::kFeedForward, 2, ".mlp.down.weight"},
                                 Removal{UnitKind::kAttention, 4, ".attention.o.weight"}}) {
    SCOPED_TRACE(NameOf(removal.kind));
    std::vector<double> without, with;  // what removal costs, by seed
    for (const uint64_t seed : kSeeds) {
      TrainedModel& model = Trained(seed);
      std::vector<int64_t> units;
      std::vector<std::string> updated;
      for (const UnitSet& set : model.table().sets()) {
        if (set.kind != removal.kind) continue;
        updated.push_back("layers." + std::to_string(set.layer) + removal.matrix);
        for (int64_t i = 1; i < set.count; i += removal.every) units.push_back(set.first + i);
      }
      const double before = model.Loss();
      without.push_back(model.LossWithout(units, {}) - before);
      with.push_back(model.LossWithout(units, updated) - before);
      EXPECT_LT(with.back(), without.back()) << "seed " << seed;
      std::printf("%s, seed %d: loss %.4f, removal costs %.4f, with the update %.4f\n",
                  NameOf(removal.kind), static_cast<int>(seed), before, without.back(),
                  with.back());
    }
    std::printf("%s: removal costs %.4f, with the update %.4f\n", NameOf(removal.kind),
                Mean(without), Mean(with));
  }
}

}  // namespace
}  // namespace filigree

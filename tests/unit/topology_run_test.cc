// The engine inside a training state: random configurations, ages in AdamW. Runs under mpirun at
// several numbers of ranks.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "comm/bootstrap.h"
#include "kernels/base/rng.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_device.h"
#include "trainer/topology/criterion.h"
#include "trainer/topology/distribution.h"
#include "trainer/topology/units.h"
#include "trainer/topology_updater.h"
#include "trainer/train_step.h"
#include "trainer/training_state.h"

namespace filigree {
namespace {

// Draws of one random configuration.
class Draw {
 public:
  explicit Draw(uint64_t number) : number_(number) {}
  int64_t Below(int64_t bound) {
    return static_cast<int64_t>(RandomBelow(number_, 17, next_++, static_cast<uint64_t>(bound)));
  }
  double Uniform(double from, double to) {
    return from + (to - from) * RandomUniform(number_, 18, next_++);
  }
  template <typename T, size_t kCount>
  T Of(const T (&choices)[kCount]) {
    return choices[Below(kCount)];
  }

 private:
  uint64_t number_;
  uint64_t next_ = 0;
};

SparsitySpec RandomSparsity(Draw& draw) {
  const auto rules = TopologyRules();
  const TopologyRule& rule = *rules[draw.Below(static_cast<int64_t>(rules.size()))];
  SparsitySpec spec = rule.defaults();
  spec.rule = rule.name;
  spec.include = {"layers.*.attention.*.weight", "layers.*.mlp.*.weight"};
  spec.parameterisation = draw.Of({"masked", "block_sparse"});
  spec.block_out = draw.Of({1, 4, 8});
  spec.block_in = draw.Of({2, 4, 8});
  spec.sparsity = draw.Uniform(0.1, 0.8);
  if (spec.initial_sparsity < 0) spec.initial_sparsity = spec.sparsity;
  if (rule.name == "sparse_to_dense") spec.sparsity = draw.Uniform(0, 0.5);
  if (rule.name == "granet") spec.initial_sparsity = spec.sparsity / 2;
  const auto distributions = Distributions();
  spec.distribution = distributions[draw.Below(static_cast<int64_t>(distributions.size()))].name;
  const auto criteria = Criteria();
  spec.criterion = criteria[draw.Below(static_cast<int64_t>(criteria.size()))].name;
  spec.curve = draw.Of({SparsityCurve::kConstant, SparsityCurve::kCubic, SparsityCurve::kGeometric,
                        SparsityCurve::kLinear});
  spec.clock = draw.Of({Clock::kFraction, Clock::kCompute});
  spec.begin = draw.Uniform(0, 0.5);
  spec.end = draw.Uniform(spec.begin, 1);
  spec.update_interval = 1 + draw.Below(3);
  spec.drop_fraction = draw.Uniform(0, 1);
  spec.final_drop_fraction = 0;
  spec.drop_end = draw.Uniform(0.3, 1);
  spec.min_density = draw.Uniform(0, 0.1);
  spec.growth_ramp_steps = draw.Below(5);
  return spec;
}

RunSpec RandomRun(uint64_t number) {
  Draw draw(number);
  RunSpec run;
  run.seed = number;
  run.zero_stage = static_cast<int>(draw.Below(2));
  run.bucket_megabytes = 0.01;
  run.model = {.layers = 1 + draw.Below(2),
               .width = 24,
               .heads = 3,
               .kv_heads = 3,
               .head_size = 8,
               .feed_forward = 30 + draw.Below(10),
               .vocab_size = 31,
               .padded_vocab_size = 32,
               .max_positions = 8};
  PhaseSpec phase;
  phase.name = "only";
  phase.steps = 6 + draw.Below(5);
  phase.batch = {.seq_len = 8, .tokens_per_step = 32, .micro_batch_sequences = 1};
  phase.schedule.lr = 0.01;
  phase.sparsity = {RandomSparsity(draw)};
  run.phases = {phase};
  return run;
}

// A run in memory, on random tokens, that checks itself at each topology update.
class CheckedRun {
 public:
  CheckedRun(const RunSpec& run, Communicator& world)
      : run_(run),
        world_(world),
        stream_(device_.NewStream()),
        step_runner_(run.phases[0].batch, backend_, *stream_),
        updater_(run_, world_, backend_) {
    state_ = MakeState({});
    state_->InitializeValues(*stream_);
    updater_.BeginPhase(0);
  }

  void Run() {
    if (updater_.NeedsAt(0).any()) Gradients();
    if (updater_.NeedsAt(0).hessian) {
      updater_.PerturbValues(*state_, *stream_);
      Gradients();
      updater_.FinishHessian(*state_, *stream_);
    }
    Update(0);
    for (int64_t step = 0; step < run_.phases[0].steps; ++step) {
      updater_.StartCollecting(state_->model(), step + 1, *stream_);
      const StepResult result =
          step_runner_.Run(*state_, Samples(step), run_.phases[0].optimizer, 0.01, step + 1);
      ASSERT_FALSE(result.update.skipped);
      updater_.FinishCollecting(state_->model(), *stream_);
      Update(step + 1);
    }
    EXPECT_TRUE(std::isfinite(state_->optimizer().Step({}, 0, 1 << 20, *stream_).grad_norm));
  }

 private:
  std::unique_ptr<TrainingState> MakeState(const std::map<std::string, SparseLayout>& layouts) {
    return std::make_unique<TrainingState>(run_, 0, layouts, world_, backend_, *stream_);
  }

  // Every rank has a sequence of its own.
  StepSamples Samples(int64_t step) {
    tokens_.clear();
    const auto rank = static_cast<uint64_t>(world_.rank());
    for (uint64_t i = 0; i <= 8; ++i) {
      tokens_.push_back(static_cast<int32_t>(RandomBelow(run_.seed + rank, step, i, 31)));
    }
    return {.tokens = tokens_.data(),
            .targets = tokens_.data() + 1,
            .sequences = 1,
            .valid_tokens = 8.0 * world_.size()};
  }

  void Gradients() {
    updater_.StartCollecting(state_->model(), 0, *stream_);
    step_runner_.Gradients(*state_, Samples(0));
    updater_.FinishCollecting(state_->model(), *stream_);
  }

  std::vector<float> Gather(TrainingState& state, int parameter, StateKind kind) {
    const auto bytes = GatherSegment(state.buffer(), parameter, kind, world_, *stream_);
    std::vector<float> values(bytes.size() / sizeof(float));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }

  void Update(int64_t step) {
    state_->exchange().WaitAllValues(*stream_);
    const auto update = updater_.Propose(*state_, step, *stream_);
    if (!update.due) return;
    auto next = MakeState(update.layouts);
    CheckLayoutsAgree(next->parameters(), world_);
    next->TakeOver(*state_, /*keep_moments=*/true, step, *stream_);
    CheckCounts(*next, step);
    TopologyChange change;
    for (size_t i = 0; i < next->parameters().size(); ++i)
      CheckMove(*next, static_cast<int>(i), step, &change);
    EXPECT_EQ(change.dropped, update.dropped);
    EXPECT_EQ(change.grown, update.grown);
    state_ = std::move(next);
  }

  void CheckCounts(const TrainingState& next, int64_t step) {
    for (const TopologyEntry& entry : EntriesOf(LinearSpecs(run_.model), run_.phases[0])) {
      std::vector<WeightShape> shapes;
      std::vector<int64_t> stored, before;
      for (const LinearSpec& linear : entry.linears) {
        shapes.push_back(ShapeOf(linear, entry.spec));
        stored.push_back(StoredUnits(next.Layouts().at(linear.name + ".weight")));
        before.push_back(StoredUnits(state_->Layouts().at(linear.name + ".weight")));
      }
      const double sparsity = entry.rule->sparsity(entry.spec, TimelineOf(run_.phases[0]), step);
      const Distribution& distribution = *FindDistribution(entry.spec.distribution);
      if (distribution.counts) {
        const auto expected = distribution.counts(shapes, sparsity);
        for (size_t i = 0; i < shapes.size(); ++i) {
          // A rule that cannot grow keeps what it has where shares of a distribution shift.
          const bool grows = entry.rule->growth != Growth::kNone;
          EXPECT_EQ(stored[i], grows ? expected[i] : std::min(expected[i], before[i]));
        }
        continue;
      }
      int64_t total = 0, sum = 0, had = 0, floors = 0;
      for (size_t i = 0; i < shapes.size(); ++i) {
        total += shapes[i].units, sum += stored[i], had += before[i];
        EXPECT_GE(stored[i], 1);
      }
      for (const int64_t floor : GlobalFloors(shapes, entry.spec)) floors += floor;
      const int64_t target = std::llround((1 - sparsity) * static_cast<double>(total));
      EXPECT_EQ(sum, std::min(std::max(target, floors), had));
    }
  }

  // Cells that stay keep value and moments to the bit; those that join have none.
  void CheckMove(TrainingState& next, int i, int64_t step, TopologyChange* change) {
    const Parameter& to = next.parameters()[i];
    const SparseLayout& from = state_->parameters()[i].layout;
    const TopologyChange own = CountChange(from, to.layout);
    change->dropped += own.dropped;
    change->grown += own.grown;
    const std::vector<int64_t> slots = IndexRemap(from, to.layout);
    const std::vector<int64_t> cells = to.layout.LogicalIndices();
    for (const StateKind kind : {StateKind::kMaster, StateKind::kM, StateKind::kV}) {
      const auto before = Gather(*state_, i, kind), after = Gather(next, i, kind);
      for (size_t slot = 0; slot < slots.size(); ++slot) {
        ASSERT_EQ(after[slot], slots[slot] >= 0 ? before[slots[slot]] : 0.0f) << to.name;
      }
    }
    const float* values = next.buffer().Values(i).As<float>();
    const auto master = Gather(next, i, StateKind::kMaster);
    for (size_t slot = 0; slot < master.size(); ++slot) ASSERT_EQ(values[slot], master[slot]);
    if (!next.buffer().has_born()) return;
    const auto before = Gather(*state_, i, StateKind::kBorn);
    const auto after = Gather(next, i, StateKind::kBorn);
    for (size_t slot = 0; slot < slots.size(); ++slot) {
      if (cells[slot] < 0) continue;
      ASSERT_EQ(after[slot], slots[slot] >= 0 ? before[slots[slot]] : static_cast<float>(step));
    }
  }

  const RunSpec run_;
  Communicator& world_;
  CpuDevice device_;
  CpuBackend backend_{device_};
  std::unique_ptr<Stream> stream_;
  TrainStep step_runner_;
  TopologyUpdater updater_;
  std::unique_ptr<TrainingState> state_;
  std::vector<int32_t> tokens_;
};

TEST(TopologyRunTest, RandomConfigurations) {
  const std::unique_ptr<Communicator> world = Bootstrap().value();
  int ran = 0;
  std::map<std::string, int> rules;
  for (uint64_t number = 0; number < 150; ++number) {
    RunSpec run = RandomRun(number);
    // What a config cannot ask for is refused with a message, never by a crash.
    if (!ValidateTopology(run, LinearSpecs(run.model)).ok()) continue;
    SCOPED_TRACE("configuration " + std::to_string(number) + ", rule " +
                 run.phases[0].sparsity[0].rule);
    CheckedRun(run, *world).Run();
    if (HasFatalFailure()) return;
    ++ran;
    ++rules[run.phases[0].sparsity[0].rule];
  }
  EXPECT_GE(ran, 50);
  EXPECT_GE(rules.size(), 9u);
}

// The update of a value that joined late is that of a fresh AdamW at its own age, ramped up.
TEST(AgedAdamWTest, OwnAgeAndRamp) {
  CpuDevice device;
  CpuBackend backend(device);
  const auto stream = device.NewStream();
  constexpr int64_t kCount = 6, kSteps = 12, kRamp = 4;
  const std::vector<float> born = {0, 5, 5, 0, 9, 0};
  std::vector<float> aged(kCount, 0.5f), m(kCount, 0), v(kCount, 0), grads(kCount);
  std::vector<double> expected(kCount, 0.5), em(kCount, 0), ev(kCount, 0);
  const float scale = 1;
  const auto view = [](std::vector<float>& a) {
    return TensorView(a.data(), DType::kF32, {kCount});
  };
  std::vector<float> birth = born;
  for (int64_t step = 10; step < 10 + kSteps; ++step) {
    for (int64_t i = 0; i < kCount; ++i) grads[i] = 0.1f * static_cast<float>(i + 1 + step % 3);
    backend.AdamW({.values = view(aged),
                   .master = view(aged),
                   .grads = view(grads),
                   .m = view(m),
                   .v = view(v),
                   .scale = ConstTensorView(&scale, DType::kF32, {1}),
                   .lr = 0.01,
                   .step = step,
                   .born = view(birth),
                   .growth_ramp = kRamp},
                  *stream);
    for (int64_t i = 0; i < kCount; ++i) {
      const double age = static_cast<double>(step) - born[i], g = grads[i];
      const double ramp = born[i] > 0 ? std::min(1.0, age / kRamp) : 1.0;
      em[i] = 0.9 * em[i] + 0.1 * g;
      ev[i] = 0.95 * ev[i] + 0.05 * g * g;
      expected[i] -= 0.01 * ramp * (em[i] / (1 - std::pow(0.9, age))) /
                     (std::sqrt(ev[i] / (1 - std::pow(0.95, age))) + 1e-8);
      ASSERT_NEAR(aged[i], expected[i], 1e-6) << "element " << i << " step " << step;
    }
  }
}

}  // namespace
}  // namespace filigree

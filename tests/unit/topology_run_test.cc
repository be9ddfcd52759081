// The engine inside a training state: random configurations, ages in AdamW. Runs under mpirun at
// several numbers of ranks.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "comm/bootstrap.h"
#include "data/data_loader.h"
#include "kernels/base/rng.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_device.h"
#include "trainer/resume.h"
#include "trainer/sample_tree.h"
#include "trainer/state_succession.h"
#include "trainer/topology/criterion.h"
#include "trainer/topology/distribution.h"
#include "trainer/topology/units.h"
#include "trainer/topology_updater.h"
#include "trainer/train_step.h"
#include "trainer/training_state.h"

namespace filigree {
namespace {

std::string TemporaryFolder() {
  std::string name = (std::filesystem::temp_directory_path() / "filigree-topology-XXXXXX").string();
  CHECK(mkdtemp(name.data()) != nullptr) << name;
  return name;
}

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

// A curve through one to three points that rises, or falls where the rule grows.
void RandomPoints(Draw& draw, double unit, SparsitySpec* spec) {
  spec->curve = SparsityCurve::kPoints;
  const int64_t count = 1 + draw.Below(3);
  for (int64_t i = 1; i <= count; ++i) {
    const double share = static_cast<double>(i) / static_cast<double>(count);
    spec->points.push_back(
        {.at = std::round(share * unit * 1e3) / 1e3,
         .sparsity = spec->initial_sparsity + share * (spec->sparsity - spec->initial_sparsity)});
  }
  spec->points.back().sparsity = spec->sparsity;
}

SparsitySpec RandomSparsity(Draw& draw, std::string_view rule_name, const Timeline& timeline) {
  const TopologyRule& rule = *FindTopologyRule(rule_name);
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
                        SparsityCurve::kLinear, SparsityCurve::kPoints});
  spec.clock = draw.Of({Clock::kFraction, Clock::kCompute, Clock::kSteps, Clock::kTokens});
  double unit = 1;  // the clock's at the end of the phase
  if (spec.clock == Clock::kSteps) unit = static_cast<double>(timeline.steps);
  if (spec.clock == Clock::kTokens) {
    unit = static_cast<double>(timeline.steps * timeline.tokens_per_step);
  }
  spec.begin = draw.Uniform(0, 0.5) * unit;
  spec.end = draw.Uniform(spec.begin, unit);
  if (spec.curve == SparsityCurve::kPoints) RandomPoints(draw, unit, &spec);
  spec.update_interval = 1 + draw.Below(3);
  spec.drop_fraction = draw.Uniform(0, 1);
  spec.final_drop_fraction = 0;
  spec.drop_end = draw.Uniform(0.3, 1);
  spec.min_density = draw.Uniform(0, 0.1);
  spec.growth_ramp_steps = draw.Below(5);
  return spec;
}

void AddPhase(Draw& draw, std::string_view rule, RunSpec* run) {
  PhaseSpec phase;
  phase.name = rule;
  phase.first_step = run->total_steps();
  phase.steps = 4 + draw.Below(5);
  phase.batch = {.seq_len = 8, .tokens_per_step = 40, .micro_batch_sequences = 2};
  phase.schedule.lr = 0.01;
  phase.sparsity = {RandomSparsity(draw, rule, {.steps = phase.steps, .tokens_per_step = 40})};
  run->phases.push_back(phase);
}

// One phase under a rule drawn, after one that prunes where the rule needs it.
RunSpec RandomRun(uint64_t number) {
  Draw draw(number);
  RunSpec run;
  run.seed = number;
  run.zero_stage = static_cast<int>(draw.Below(2));
  run.deterministic = draw.Below(2) == 1;
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
  const auto rules = TopologyRules();
  const std::string_view rule = rules[draw.Below(static_cast<int64_t>(rules.size()))]->name;
  const bool rewinds = rule == "iterative_magnitude";
  if (rule == "inherit" || rewinds || draw.Below(4) == 0) {
    AddPhase(draw, draw.Of({"gradual_magnitude", "static_random", "set"}), &run);
  }
  AddPhase(draw, rule, &run);
  if (run.phases.size() == 1) return run;
  SparsitySpec& spec = run.phases[1].sparsity[0];
  const SparsitySpec& before = run.phases[0].sparsity[0];
  if (rule == "inherit") {  // what there is to inherit
    spec.parameterisation = before.parameterisation;
    spec.block_out = before.block_out;
    spec.block_in = before.block_in;
    spec.sparsity = spec.initial_sparsity = before.sparsity;
  }
  if (rewinds) run.phases[1].rewind_step = 0;
  if (!rewinds && draw.Below(2) == 0) run.phases[1].moments = Moments::kKeep;
  return run;
}

// A run in memory, on random tokens, that checks itself at each topology update.
class CheckedRun {
 public:
  CheckedRun(const RunSpec& run, Communicator& world)
      : run_(run), world_(world), stream_(device_.NewStream()), updater_(run_, world_, backend_) {
    state_ = MakeState({});
    state_->InitializeValues(*stream_);
  }

  // `checkpoint`: where the state is saved, and loaded again, halfway through; empty: nowhere.
  void Run(const std::string& checkpoint) {
    for (phase_ = 0; phase_ < static_cast<int>(run_.phases.size()); ++phase_) {
      ASSERT_NO_FATAL_FAILURE(RunPhase(checkpoint));
    }
    EXPECT_TRUE(std::isfinite(state_->optimizer().GradNorm(*stream_)));
  }

  TrainingState& state() { return *state_; }
  std::vector<float> Gather(TrainingState& state, int parameter, StateKind kind) {
    const auto bytes = GatherSegment(state.buffer(), parameter, kind, world_, *stream_);
    std::vector<float> values(bytes.size() / sizeof(float));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }

 private:
  const PhaseSpec& phase() const { return run_.phases[phase_]; }
  int64_t UpdatesDone(int64_t step) const {
    return UpdatesSinceFreshMoments(run_, phase_, step) - 1;
  }
  std::unique_ptr<TrainingState> MakeState(const std::map<std::string, SparseLayout>& layouts) {
    return std::make_unique<TrainingState>(run_, phase_, layouts, world_, backend_, *stream_);
  }

  void RunPhase(const std::string& checkpoint) {
    step_runner_ = std::make_unique<TrainStep>(phase().batch, backend_, *stream_);
    if (SumsInTree(run_, device_)) step_runner_->SumInTree(world_);
    if (phase_ > 0) EnterPhase();
    updater_.BeginPhase(phase_);
    ASSERT_NO_FATAL_FAILURE(StartTopology());
    const int64_t first = phase().first_step, end = first + phase().steps;
    for (int64_t step = first; step < end; ++step) {
      updater_.StartCollecting(state_->model(), step + 1, *stream_);
      const StepResult result =
          step_runner_->Run(*state_, Samples(step), phase().optimizer, 0.01, UpdatesDone(step) + 1);
      ASSERT_FALSE(result.update.skipped);
      updater_.FinishCollecting(state_->model(), *stream_);
      ASSERT_NO_FATAL_FAILURE(Update(step + 1));
      if (step == (first + end) / 2 && !checkpoint.empty()) {
        ASSERT_NO_FATAL_FAILURE(SaveAndLoad(checkpoint, step + 1));
      }
    }
  }

  void EnterPhase() {
    state_->exchange().WaitAllValues(*stream_);
    const auto inherited = InheritedLayouts(LinearSpecs(run_.model), phase(), state_->Layouts());
    auto next = MakeState(inherited);
    next->TakeOver(*state_, phase().moments == Moments::kKeep, UpdatesDone(phase().first_step),
                   *stream_);
    for (const auto& [name, layout] : inherited) EXPECT_EQ(layout, state_->Layouts().at(name));
    if (phase().sparsity[0].rule == "inherit") {
      EXPECT_EQ(next->Layouts(), state_->Layouts());
    }
    state_ = std::move(next);
  }

  void StartTopology() {
    const int64_t step = phase().first_step;
    if (updater_.NeedsAt(step).any()) Gradients(step);
    if (updater_.NeedsAt(step).hessian) {
      updater_.PerturbValues(*state_, *stream_);
      Gradients(step);
      updater_.FinishHessian(*state_, *stream_);
    }
    ASSERT_NO_FATAL_FAILURE(Update(step));
    if (phase().rewind_step == 0) state_->InitializeValues(*stream_);
  }

  // This rank's part of the step's sequences, each a function of its number.
  StepSamples Samples(int64_t step) {
    const int64_t all = phase().batch.sequences_per_step();
    const SampleRange mine = PartitionSamples(all, world_.rank(), world_.size());
    tokens_.clear();
    targets_.clear();
    for (int64_t sample = mine.begin; sample < mine.begin + mine.count; ++sample) {
      for (uint64_t i = 0; i <= 8; ++i) {
        const auto token = static_cast<int32_t>(
            RandomBelow(run_.seed, static_cast<uint64_t>(step * all + sample), i, 31));
        if (i < 8) tokens_.push_back(token);
        if (i > 0) targets_.push_back(token);
      }
    }
    return {.tokens = tokens_.data(),
            .targets = targets_.data(),
            .sequences = mine.count,
            .valid_tokens = 8.0 * static_cast<double>(all),
            .statistics = updater_.Collected()};
  }

  void Gradients(int64_t step) {
    updater_.StartCollecting(state_->model(), step, *stream_);
    step_runner_->Gradients(*state_, Samples(step));
    updater_.FinishCollecting(state_->model(), *stream_);
  }

  // What a resumed run starts from is what was saved, to the bit.
  void SaveAndLoad(const std::string& directory, int64_t step) {
    state_->exchange().WaitAllValues(*stream_);
    CheckpointInfo info;
    info.step = step;
    info.phase = phase_;
    info.seed = run_.seed;
    info.model = run_.model;
    const Status saved = state_->Save(directory, info, "", *stream_);
    ASSERT_TRUE(saved.ok()) << saved.message();
    const auto reader = CheckpointReader::Open(directory);
    ASSERT_TRUE(reader.ok()) << reader.status().message();
    const Status fits = CheckLayouts((*reader)->info(), run_, phase_, directory);
    ASSERT_TRUE(fits.ok()) << fits.message();
    StateSuccession resumed(run_, world_, backend_, *stream_);
    ASSERT_TRUE(resumed.Build(phase_, reader->get()).ok());
    ASSERT_EQ(resumed->Layouts(), state_->Layouts());
    for (size_t i = 0; i < state_->parameters().size(); ++i) {
      ExpectSame(*resumed, *state_, static_cast<int>(i));
    }
    auto loaded = MakeState(state_->Layouts());
    ASSERT_TRUE(loaded->Load(**reader, /*moments=*/true, *stream_).ok());
    state_ = std::move(loaded);
    world_.Barrier();  // nobody writes the next one while this one is read
  }

  void ExpectSame(TrainingState& a, TrainingState& b, int parameter) {
    for (const StateKind kind :
         {StateKind::kMaster, StateKind::kM, StateKind::kV, StateKind::kBorn}) {
      if (kind == StateKind::kBorn && !a.buffer().has_born()) continue;
      EXPECT_EQ(Gather(a, parameter, kind), Gather(b, parameter, kind))
          << a.parameters()[parameter].name << " state " << static_cast<int>(kind);
    }
  }

  void Update(int64_t step) {
    state_->exchange().WaitAllValues(*stream_);
    const auto update = updater_.Propose(*state_, step, *stream_);
    if (!update.due) return;
    auto next = MakeState(update.layouts);
    CheckLayoutsAgree(next->parameters(), world_);
    next->TakeOver(*state_, /*keep_moments=*/true, UpdatesDone(step), *stream_);
    CheckCounts(*next, step);
    TopologyChange change;
    for (size_t i = 0; i < next->parameters().size(); ++i) {
      ASSERT_NO_FATAL_FAILURE(CheckMove(*next, static_cast<int>(i), step, &change));
    }
    EXPECT_EQ(change.dropped, update.dropped);
    EXPECT_EQ(change.grown, update.grown);
    state_ = std::move(next);
  }

  void CheckCounts(const TrainingState& next, int64_t step) {
    for (const TopologyEntry& entry : EntriesOf(LinearSpecs(run_.model), phase())) {
      std::vector<WeightShape> shapes;
      std::vector<int64_t> stored, before;
      for (const LinearSpec& linear : entry.linears) {
        shapes.push_back(ShapeOf(linear, entry.spec));
        stored.push_back(StoredUnits(next.Layouts().at(linear.name + ".weight")));
        before.push_back(StoredUnits(state_->Layouts().at(linear.name + ".weight")));
      }
      const double sparsity =
          entry.rule->sparsity(entry.spec, TimelineOf(phase()), step - phase().first_step);
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
      float expected = static_cast<float>(UpdatesDone(step));
      if (slots[slot] >= 0) expected = before[slots[slot]];
      if (cells[slot] < 0) expected = 0;  // padding
      ASSERT_EQ(after[slot], expected);
    }
  }

  const RunSpec run_;
  Communicator& world_;
  CpuDevice device_;
  CpuBackend backend_{device_};
  std::unique_ptr<Stream> stream_;
  int phase_ = 0;
  std::unique_ptr<TrainStep> step_runner_;
  TopologyUpdater updater_;
  std::unique_ptr<TrainingState> state_;
  std::vector<int32_t> tokens_, targets_;
};

// Layouts and weights of a deterministic run do not depend on the number of ranks.
void ExpectSameAlone(const RunSpec& run, CheckedRun& ranks) {
  const auto alone = MakeSingleProcessCommunicator();
  CheckedRun reference(run, *alone);
  ASSERT_NO_FATAL_FAILURE(reference.Run(""));
  ASSERT_EQ(ranks.state().Layouts(), reference.state().Layouts());
  for (size_t i = 0; i < ranks.state().parameters().size(); ++i) {
    const int parameter = static_cast<int>(i);
    for (const StateKind kind : {StateKind::kMaster, StateKind::kM, StateKind::kV}) {
      ASSERT_EQ(ranks.Gather(ranks.state(), parameter, kind),
                reference.Gather(reference.state(), parameter, kind))
          << ranks.state().parameters()[i].name << " state " << static_cast<int>(kind);
    }
  }
}

TEST(TopologyRunTest, RandomConfigurations) {
  const std::unique_ptr<Communicator> world = Bootstrap().value();
  std::string folder = world->rank() == 0 ? TemporaryFolder() : "";
  world->BroadcastHost(&folder, 0);
  int ran = 0;
  std::map<std::string, int> seen;
  for (uint64_t number = 0; number < 180; ++number) {
    const RunSpec run = RandomRun(number);
    // What a config cannot ask for is refused with a message, never by a crash.
    if (!ValidateTopology(run, LinearSpecs(run.model)).ok()) continue;
    const SparsitySpec& spec = run.phases.back().sparsity[0];
    SCOPED_TRACE("configuration " + std::to_string(number) + ", rule " + spec.rule);
    CheckedRun checked(run, *world);
    const std::string checkpoint = folder + "/" + std::to_string(number);
    ASSERT_NO_FATAL_FAILURE(checked.Run(ran % 3 == 0 ? checkpoint : ""));
    if (run.deterministic && ran % 2 == 0) {
      ASSERT_NO_FATAL_FAILURE(ExpectSameAlone(run, checked));
    }
    ++ran;
    ++seen["rule " + spec.rule];
    ++seen[spec.parameterisation];
    ++seen["distribution " + spec.distribution];
    ++seen["criterion " + spec.criterion];
    ++seen["clock " + std::to_string(static_cast<int>(spec.clock))];
    ++seen["curve " + std::to_string(static_cast<int>(spec.curve))];
  }
  EXPECT_GE(ran, 60);
  const size_t curves_and_clocks = 5 + 4;
  EXPECT_EQ(seen.size(), TopologyRules().size() + 2 + Distributions().size() + Criteria().size() +
                             curves_and_clocks)
      << ::testing::PrintToString(seen);
  world->Barrier();
  if (world->rank() == 0) std::filesystem::remove_all(folder);
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

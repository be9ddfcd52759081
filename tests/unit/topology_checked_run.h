// A run in memory, on random tokens, that checks itself at each topology update.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "data/data_loader.h"
#include "kernels/base/rng.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_device.h"
#include "trainer/resume.h"
#include "trainer/sample_tree.h"
#include "trainer/state_succession.h"
#include "trainer/topology/distribution.h"
#include "kernels/sparse/unit_layout.h"
#include "trainer/topology_updater.h"
#include "trainer/train_step.h"
#include "trainer/training_state.h"

namespace filigree {

// After every update: exact counts; what stays keeps value, moments and age to the bit, what joins
// has none. Halfway through a phase, saved and loaded.
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
        stored.push_back(StoredUnitCount(next.Layouts().at(linear.name + ".weight")));
        before.push_back(StoredUnitCount(state_->Layouts().at(linear.name + ".weight")));
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

}  // namespace filigree

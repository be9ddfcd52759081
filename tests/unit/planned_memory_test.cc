// What `plan` says of parameters, bytes and memory: against what states, updates and teachers hold,
// and of phases after one that prunes.
#include <gtest/gtest.h>

#include <filesystem>
#include <utility>
#include <vector>

#include "tests/unit/training_state_testing.h"
#include "trainer/planner.h"
#include "trainer/pruning/planned_size.h"
#include "trainer/pruning/ramp.h"
#include "trainer/state_succession.h"
#include "trainer/teacher.h"
#include "trainer/topology_updater.h"

namespace filigree {
namespace {

TEST_F(TrainerTest, PlannedBytesOfSparsifiedWeightsAreAQuarter) {
  RunSpec run = OddRun();
  // Blocks that divide the widths: exactly a quarter.
  run.model.width = 64;
  run.model.head_size = 16;
  run.model.heads = 4;
  run.model.kv_heads = 2;
  run.model.feed_forward = 128;
  const RunPlan plan = PlanRun(run, 2, backend_);
  int64_t sparsifiable = 0;
  const auto dense = MakeState(run, 1);
  for (const Parameter& p : dense->parameters()) {
    if (p.sparsifiable) sparsifiable += p.logical_count();
  }
  const PhasePlan& sparse = plan.phases[0];
  EXPECT_EQ(sparse.sparsity, 0.75);
  EXPECT_EQ(sparse.parameters_logical - sparse.parameters_stored, sparsifiable * 3 / 4);
  EXPECT_NEAR(static_cast<double>(sparse.exchanged.sparsified_grads), sparsifiable * 4 / 4.0,
              0.05 * static_cast<double>(sparsifiable));
  EXPECT_EQ(plan.average_density(), (0.25 + 1.0) / 2);
}

TEST_F(TrainerTest, PlannedMemoryIsWhatAStateHolds) {
  const RunSpec run = OddRun();
  const RunPlan plan = PlanRun(run, 1, backend_);
  for (int phase = 0; phase < 2; ++phase) {
    auto state = MakeState(run, phase);
    const TrainStep step(run.phases[phase].batch, backend_, *stream_);  // with the tokens' arrays
    const auto held = device_.memory_usage().bytes_by_kind;
    for (const char* kind : {"values", "grads", "moments", "activations"}) {
      EXPECT_EQ(static_cast<int64_t>(held.at(kind)), plan.phases[phase].memory_bytes.at(kind))
          << kind << " of phase " << phase;
    }
  }
}

// The peak of an update is the new state beside the old one, or the dense gradients before it.
TEST_F(TrainerTest, PlannedMemoryOfAnUpdateIsItsPeak) {
  for (const char* rule : {"set", "rigl"}) {
    RunSpec run = OddRun();
    run.phases.resize(1);
    SparsitySpec& spec = run.phases[0].sparsity[0];
    spec.rule = rule;
    spec.drop_fraction = 0.3;
    spec.update_interval = 2;
    spec.initial_sparsity = spec.sparsity;
    const RunPlan plan = PlanRun(run, 1, backend_);
    CpuDevice device;
    CpuBackend backend(device);
    const auto stream = device.NewStream();
    StateSuccession state(run, *communicator_, backend, *stream);
    ASSERT_TRUE(state.Build(0, nullptr).ok());
    TopologyUpdater updater(run, *communicator_, backend);
    updater.BeginPhase(0);
    updater.StartCollecting(state->model(), 2, *stream);
    updater.FinishCollecting(state->model(), *stream);
    const auto update = updater.Propose(*state, 2, *stream);
    ASSERT_TRUE(update.changed());
    state.ChangeLayouts(update.layouts, 2);
    const auto peak = static_cast<double>(device.memory_usage().peak_bytes);
    const auto planned = static_cast<double>(plan.phases[0].memory_total());
    EXPECT_NEAR(peak / planned, 1, 0.02) << rule << ": held " << peak << ", planned " << planned;
  }
}

// A phase's state is built beside that of the phase before.
TEST_F(TrainerTest, PlannedMemoryOfAPhaseChangeIsItsPeak) {
  for (const char* parameterisation : {"block_sparse", "masked"}) {
    RunSpec run = OddRun();
    run.phases[0].sparsity[0].parameterisation = parameterisation;
    const RunPlan plan = PlanRun(run, 1, backend_);
    CpuDevice device;
    CpuBackend backend(device);
    const auto stream = device.NewStream();
    StateSuccession state(run, *communicator_, backend, *stream);
    ASSERT_TRUE(state.Build(0, nullptr).ok());
    // The step's own arrays are there all the time.
    TrainStep step(run.phases[0].batch, backend, *stream);
    step.Gradients(*state, RepeatingText().samples());
    state.EnterPhase(1, run.phases[1].first_step);
    const auto peak = static_cast<double>(device.memory_usage().peak_bytes);
    // The CPU reads layouts as they lie on the host, which its device does not count.
    const auto planned = static_cast<double>(plan.phases[1].memory_total() -
                                             plan.phases[0].memory_bytes.at("layouts"));
    EXPECT_NEAR(peak / planned, 1, 0.005) << parameterisation;
    EXPECT_EQ(plan.phases[0].memory_bytes.at("transition"), 0);
  }
}

// What gathering and rounding take follows from both phases' forms of the state.
TEST_F(TrainerTest, PlannedMemoryOfAPhaseChangeFollowsBothForms) {
  for (const bool bf16_first : {false, true}) {
    for (const bool small_first : {false, true}) {
      for (const Moments moments : {Moments::kFresh, Moments::kKeep}) {
        RunSpec run = OddRun();
        run.model.feed_forward = 800;  // of which the dense matrices' moments may be codes
        run.phases[0].optimizer.state = {.bf16 = bf16_first, .eight_bit_moments = small_first};
        run.phases[1].optimizer.state = {.bf16 = !bf16_first};
        run.phases[1].moments = moments;
        const RunPlan plan = PlanRun(run, 1, backend_);
        CpuDevice device;
        CpuBackend backend(device);
        const auto stream = device.NewStream();
        StateSuccession state(run, *communicator_, backend, *stream);
        ASSERT_TRUE(state.Build(0, nullptr).ok());
        const TrainStep step(run.phases[0].batch, backend, *stream);
        device.ForgetPeak();
        state.EnterPhase(1, run.phases[1].first_step);
        const MemoryUsage usage = device.memory_usage();
        // Beside the step's arrays and each state's there is what the host reads; layouts lie on
        // the host too, which a CPU's device does not count.
        const size_t pinned = usage.bytes_by_kind.at("pinned") + sizeof(double);
        EXPECT_EQ(static_cast<int64_t>(usage.peak_bytes - pinned),
                  plan.phases[1].memory_total() - plan.phases[0].memory_bytes.at("layouts"))
            << "from bf16 " << bf16_first << ", 8 bit " << small_first << ", moments kept "
            << (moments == Moments::kKeep);
      }
    }
  }
}

// Expanded weights, and the copies of biases that joined parts read as one where the flat buffer
// does not have them so: with whole alignments it does.
TEST_F(TrainerTest, PlannedCopiesAreWhatAStateHolds) {
  for (const int64_t head_size : {int64_t{7}, kSegmentAlignment / 2}) {
    CpuDevice device;
    CpuBackend backend(device);
    RunSpec run = OddRun();
    run.model.family = ModelFamily::kGpt2;  // with biases
    run.model.heads = run.model.kv_heads = 2;
    run.model.head_size = head_size;
    run.model.width = 2 * head_size;
    SparsitySpec& spec = run.phases[0].sparsity[0];
    spec.parameterisation = "masked";
    spec.block_out = spec.block_in = 1;
    const RunPlan plan = PlanRun(run, 1, backend);
    const auto stream = device.NewStream();
    TrainingState state(run, 0, {}, *communicator_, backend, *stream);
    TrainStep(run.phases[0].batch, backend, *stream).Gradients(state, RepeatingText().samples());
    EXPECT_EQ(static_cast<int64_t>(device.memory_usage().bytes_by_kind.at("compute_copies")),
              plan.phases[0].memory_bytes.at("compute_copies"))
        << head_size;
  }
}

TEST_F(TrainerTest, PlannedMemoryOfCompactStateIsWhatItHolds) {
  std::vector<int64_t> moments;
  for (const RunSpec& run : CompactRuns()) {
    const RunPlan plan = PlanRun(run, 1, backend_);
    auto state = MakeState(run, 0);
    const auto held = device_.memory_usage().bytes_by_kind;
    for (const char* kind : {"values", "grads", "moments"}) {
      EXPECT_EQ(static_cast<int64_t>(held.at(kind)), plan.phases[0].memory_bytes.at(kind)) << kind;
    }
    moments.push_back(plan.phases[0].memory_bytes.at("moments"));
  }
  EXPECT_EQ(moments[1] * 2, moments[0]);
  EXPECT_LT(moments[2], moments[1]);
  EXPECT_LT(moments[3], moments[2]);
}

// A phase after one that prunes trains a model of the target's size, a sparse one its density's
// share of that.
TEST_F(TrainerTest, AfterPruningAPhaseIsPlannedAtTheTargetsSize) {
  RunSpec run = OddRun();
  std::swap(run.phases[0].sparsity, run.phases[1].sparsity);
  const RunPlan whole = PlanRun(run, 1, backend_);
  const int64_t all = CountParameters(run.model);
  const int64_t target = all / 2;
  const PruningSpec pruning = {.target_parameters = target};
  run.phases[0].pruning = pruning;
  const RunPlan plan = PlanRun(run, 1, backend_);
  const PhasePlan& shrinks = plan.phases[0];
  EXPECT_FALSE(shrinks.pruned_before);
  EXPECT_EQ(shrinks.parameters_final, target);
  EXPECT_GT(shrinks.average_parameters, target);
  EXPECT_LT(shrinks.average_parameters, all);
  // 6 operations a token and parameter that is gone.
  const double fewer = 6.0 * (static_cast<double>(all) - shrinks.average_parameters) *
                       static_cast<double>(shrinks.tokens);
  EXPECT_NEAR(shrinks.flops.dense_equivalent, whole.phases[0].flops.dense_equivalent - fewer,
              1e-6 * fewer);

  const PhasePlan& after = plan.phases[1];
  EXPECT_TRUE(after.pruned_before);
  EXPECT_LE(after.parameters_logical, target);
  EXPECT_GT(after.parameters_logical, target - target / 20);
  RunSpec small = run;
  small.model = PrunedInProportion(run.model, pruning);
  small.phases[0].pruning.reset();
  const PhasePlan same = PlanRun(small, 1, backend_).phases[1];
  EXPECT_EQ(after.parameters_stored, same.parameters_stored);
  EXPECT_EQ(after.flops.method, same.flops.method);
  EXPECT_EQ(after.flops.executed, same.flops.executed);
  for (const auto& [kind, bytes] : same.memory_bytes) {
    if (kind == "transition") continue;
    EXPECT_EQ(after.memory_bytes.at(kind), bytes) << kind;
  }
  EXPECT_NEAR(after.sparsity, whole.phases[1].sparsity, 0.05);
}

// No kind of unit pays for the others.
TEST_F(TrainerTest, PrunedInProportionAllSizesShrinkAlike) {
  ModelSpec model = OddRun().model;
  model.width = model.norm_width = 128;
  model.heads = model.kv_heads = 16;
  model.head_size = 8;
  model.feed_forward = 256;
  const int64_t target = CountParameters(model) / 2;
  const ModelSpec pruned = PrunedInProportion(model, {.target_parameters = target});
  // The coarsest step: a head in every layer.
  const int64_t head = model.layers * 4 * pruned.width * model.head_size;
  EXPECT_LE(CountParameters(pruned), target);
  EXPECT_GT(CountParameters(pruned), target - head);
  const double width = static_cast<double>(pruned.width) / 128;
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    const LayerShape shape = pruned.ShapeOf(layer);
    EXPECT_NEAR(static_cast<double>(shape.kv_heads) / 16, width, 0.1) << layer;
    EXPECT_NEAR(static_cast<double>(shape.feed_forward) / 256, width, 0.1) << layer;
  }
}

TEST_F(TrainerTest, PlannedTeacherIsWhatItHolds) {
  RunSpec run = OddRun();
  const std::string directory = ::testing::TempDir() + "filigree-teacher/step_00000001";
  {
    auto state = MakeState(run, 0);
    state->InitializeValues(*stream_);
    CheckpointInfo info;
    info.model = run.model;
    ASSERT_TRUE(state->Save(directory, info, "", *stream_).ok());
  }
  run.phases[1].distillation.teacher = directory;
  const auto teachers = OpenTeachers(run);
  ASSERT_TRUE(teachers.ok()) << teachers.status().message();
  const RunPlan plan = PlanRun(run, 1, backend_, *teachers);
  EXPECT_EQ(plan.phases[0].memory_bytes.count("teacher"), 0u);
  const auto before = static_cast<int64_t>(device_.memory_usage().total_bytes);
  const auto teacher = Teacher::Load(run.phases[1], backend_, *stream_);
  ASSERT_TRUE(teacher.ok()) << teacher.status().message();
  // And a divergence a token, which the step keeps beside the losses.
  const BatchSpec& batch = run.phases[1].batch;
  const int64_t tokens = batch.micro_batch_sequences * batch.seq_len;
  EXPECT_EQ(static_cast<int64_t>(device_.memory_usage().total_bytes) - before +
                tokens * static_cast<int64_t>(sizeof(float)),
            plan.phases[1].memory_bytes.at("teacher"));
  std::filesystem::remove_all(std::filesystem::path(directory).parent_path());
}

}  // namespace
}  // namespace filigree

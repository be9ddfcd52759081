// Inputs whose sums are exact: any number of ranks, with a sharded optimizer or a whole one, must
// leave the bits that one process leaves. Runs under mpirun at several numbers of ranks.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "comm/bootstrap.h"
#include "comm/mpi_communicator.h"
#include "data/data_loader.h"
#include "kernels/base/rng.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_device.h"
#include "tests/unit/trainer_testing.h"
#include "trainer/planner.h"
#include "trainer/training_state.h"

namespace filigree {
namespace {

constexpr int64_t kSamples = 7;  // no number of ranks tested divides them
constexpr int kSteps = 3;

// What one sample adds to a gradient: a multiple of 1/16 of a size that sums of seven, and their
// squares, are exact in any order: below 4 in F32, below 18/16 in BF16, which has eight bits.
float SampleGradient(int64_t step, int64_t sample, int parameter, int64_t slot, int64_t largest) {
  const uint64_t stream = RngStream("gradient", "", static_cast<uint64_t>(parameter));
  const uint64_t draw = RandomBelow(static_cast<uint64_t>(step * kSamples + sample), stream,
                                    static_cast<uint64_t>(slot), 2 * largest + 1);
  return (static_cast<float>(draw) - static_cast<float>(largest)) / 16.0f;
}

// A state trained for some steps on such gradients, over a communicator. In the step `spoiled`, if
// there is one, the last rank has a gradient that is not finite.
class ExactRun {
 public:
  ExactRun(const RunSpec& run, Communicator& communicator, int64_t spoiled = -1)
      : run_(run),
        communicator_(communicator),
        state_(run_, /*phase=*/0, {}, communicator, backend_, *stream_) {
    state_.InitializeValues(*stream_);
    for (int64_t step = 0; step < kSteps; ++step) Step(step, step == spoiled);
    state_.exchange().WaitAllValues(*stream_);
  }

  TrainingState& state() { return state_; }
  const std::vector<double>& norms() const { return norms_; }
  // Of each step.
  const std::vector<ExchangedBytes>& bytes() const { return bytes_; }

  std::vector<std::byte> Gather(int parameter, StateKind kind) {
    return GatherSegment(state_.buffer(), parameter, kind, communicator_, *stream_);
  }

 private:
  void Step(int64_t step, bool spoiled) {
    device_.ZeroAsync(state_.buffer().grads(), *stream_);
    const SampleRange mine = PartitionSamples(kSamples, communicator_.rank(), communicator_.size());
    const auto parameters = static_cast<int>(state_.parameters().size());
    const std::unique_ptr<Event> ready = device_.NewEvent();
    for (int parameter = parameters - 1; parameter >= 0; --parameter) {
      AddGradients(step, mine, parameter);
      if (spoiled && parameter == 3 && communicator_.rank() == communicator_.size() - 1) {
        const TensorView grads = state_.buffer().Grads(parameter);
        grads.dtype() == DType::kBF16 ? void(grads.As<BFloat16>()[5] = BFloat16(INFINITY))
                                      : void(grads.As<float>()[5] = INFINITY);
      }
      ready->Record(*stream_);
      state_.exchange().MarkReady(parameter, *ready);
    }
    state_.exchange().EndBackward();
    OptimizerSpec spec;
    spec.clip_norm = 8;  // far below the norm: the global sum reaches every weight
    state_.exchange().WaitAllValues(*stream_);
    const double norm = state_.optimizer().last_norm();
    const auto before = spoiled ? GatherAll() : std::vector<std::vector<std::byte>>();
    const Optimizer::Result result = state_.optimizer().Step(spec, 1e-2, step + 1, *stream_);
    bytes_.push_back(state_.exchange().TakeBytes());
    EXPECT_EQ(result.skipped, spoiled);
    if (spoiled) {
      EXPECT_EQ(state_.optimizer().last_norm(), norm);
      EXPECT_TRUE(GatherAll() == before);
      return;
    }
    EXPECT_GT(result.grad_norm, spec.clip_norm);
    norms_.push_back(result.grad_norm);
  }

  std::vector<std::vector<std::byte>> GatherAll() {
    std::vector<std::vector<std::byte>> all;
    for (size_t i = 0; i < state_.parameters().size(); ++i) {
      for (StateKind kind : {StateKind::kMaster, StateKind::kM, StateKind::kV}) {
        all.push_back(Gather(static_cast<int>(i), kind));
      }
    }
    return all;
  }

  void AddGradients(int64_t step, const SampleRange& samples, int parameter) {
    const Parameter& p = state_.parameters()[parameter];
    const std::vector<int64_t> logical = p.layout.LogicalIndices();
    const TensorView grads = state_.buffer().Grads(parameter);
    const bool narrow = run_.wire_dtype == DType::kBF16;
    const auto add_all = [&]<typename T>(T* to) {
      for (size_t slot = 0; slot < logical.size(); ++slot) {
        if (logical[slot] < 0) continue;
        for (int64_t i = 0; i < samples.count; ++i) {
          to[slot] = T(static_cast<float>(to[slot]) +
                       SampleGradient(step, samples.begin + i, parameter,
                                      static_cast<int64_t>(slot), narrow ? 18 : 63));
        }
      }
    };
    if (grads.dtype() == DType::kBF16) {
      add_all(grads.As<BFloat16>());
    } else {
      add_all(grads.As<float>());
    }
  }

  const RunSpec& run_;
  Communicator& communicator_;
  CpuDevice device_;
  CpuBackend backend_{device_};
  std::unique_ptr<Stream> stream_ = device_.NewStream();
  TrainingState state_;
  std::vector<double> norms_;
  std::vector<ExchangedBytes> bytes_;
};

struct Exchanged {
  int zero_stage;
  DType grad_dtype, wire_dtype;
};

class ExactExchangeTest : public ::testing::TestWithParam<Exchanged> {
 protected:
  RunSpec Run() const {
    RunSpec run = OddRun();
    run.zero_stage = GetParam().zero_stage;
    run.grad_dtype = GetParam().grad_dtype;
    run.wire_dtype = GetParam().wire_dtype;
    run.bucket_megabytes = 0.008;  // several buckets of each kind
    return run;
  }
  static void ExpectTheBitsOfOneProcess(const RunSpec& run, int64_t spoiled = -1) {
    const auto world = MakeMpiCommunicator();
    const auto alone = MakeSingleProcessCommunicator();
    ExactRun ranks(run, *world, spoiled), reference(run, *alone, spoiled);
    ASSERT_GT(ranks.state().buffer().layout().buckets().size(), 4u);
    EXPECT_EQ(ranks.norms(), reference.norms());
    for (size_t i = 0; i < reference.state().parameters().size(); ++i) {
      const int parameter = static_cast<int>(i);
      const std::string& name = reference.state().parameters()[i].name;
      for (StateKind kind : {StateKind::kMaster, StateKind::kM, StateKind::kV}) {
        EXPECT_EQ(ranks.Gather(parameter, kind), reference.Gather(parameter, kind))
            << name << " state " << static_cast<int>(kind);
      }
      // Every rank reads all values, its own and those gathered.
      const TensorView found = ranks.state().buffer().Values(parameter);
      const TensorView expected = reference.state().buffer().Values(parameter);
      ASSERT_EQ(found.bytes(), expected.bytes());
      EXPECT_EQ(std::memcmp(found.data(), expected.data(), found.bytes()), 0) << name << " values";
    }
  }
};

TEST_P(ExactExchangeTest, RanksLeaveTheBitsThatOneProcessLeaves) {
  ExpectTheBitsOfOneProcess(Run());
}

// Random bits and blocks of codes belong to parameters, wherever these are cut.
TEST_P(ExactExchangeTest, CompactStateToo) {
  if (GetParam().grad_dtype != DType::kF32 || GetParam().wire_dtype != DType::kF32) return;
  for (const StateFormat& format : {StateFormat{.bf16 = true, .eight_bit_moments = false},
                                    StateFormat{.bf16 = false, .eight_bit_moments = true},
                                    StateFormat{.bf16 = true, .eight_bit_moments = true}}) {
    RunSpec run = Run();
    // Dense matrices of 8400 values, which have codes and a last block of 208, beside small ones.
    run.model.feed_forward = 200;
    run.phases[0].sparsity = {};
    run.phases[0].optimizer.state = format;
    ExpectTheBitsOfOneProcess(run);
  }
}

// One rank's gradient that is not finite skips the step on all of them, and the next one goes on
// from the same bits; buckets were on their way by then, so that a skipped step exchanges what any
// does.
TEST_P(ExactExchangeTest, AStepThatIsSkippedLeavesTheStateAndExchangesAsMuch) {
  const RunSpec run = Run();
  constexpr int64_t kSpoiled = 1;
  ExpectTheBitsOfOneProcess(run, kSpoiled);
  const auto world = MakeMpiCommunicator();
  const ExactRun ranks(run, *world, kSpoiled);
  EXPECT_EQ(ranks.norms().size(), size_t{kSteps - 1});
  const ExchangedBytes &before = ranks.bytes()[0], &skipped = ranks.bytes()[kSpoiled];
  EXPECT_EQ(skipped.sparsified_grads, before.sparsified_grads);
  EXPECT_EQ(skipped.dense_grads, before.dense_grads);
  EXPECT_EQ(skipped.sparsified_values, before.sparsified_values);
  EXPECT_EQ(skipped.dense_values, before.dense_values);
  EXPECT_EQ(skipped.control, before.control);
  EXPECT_EQ(skipped.total() > 0, world->size() > 1);
}

TEST_P(ExactExchangeTest, CountsWhatWasPredicted) {
  const RunSpec run = Run();
  const auto world = MakeMpiCommunicator();
  ExactRun ranks(run, *world);
  const ExchangedBytes predicted = PredictExchangedBytes(
      ranks.state().buffer().layout(), world->size(), DType::kF32, GetParam().wire_dtype);
  for (const ExchangedBytes& step : ranks.bytes()) {
    EXPECT_EQ(step.sparsified_grads, predicted.sparsified_grads);
    EXPECT_EQ(step.dense_grads, predicted.dense_grads);
    EXPECT_EQ(step.sparsified_values, predicted.sparsified_values);
    EXPECT_EQ(step.dense_values, predicted.dense_values);
  }
  const bool sent = world->size() > 1;
  EXPECT_EQ(predicted.sparsified_grads > 0, sent);
  EXPECT_EQ(predicted.sparsified_values > 0, sent && GetParam().zero_stage == 1);
}

// Rounding to the wire costs nothing but its own memory, which plan counts too.
TEST_P(ExactExchangeTest, HoldsWhatWasPlanned) {
  const RunSpec run = Run();
  const auto world = MakeMpiCommunicator();
  CpuDevice device;
  CpuBackend backend(device);
  const auto stream = device.NewStream();
  const TrainingState state(run, /*phase=*/0, {}, *world, backend, *stream);
  const auto planned = PlanRun(run, world->size(), backend).phases.front().memory_bytes;
  EXPECT_EQ(static_cast<int64_t>(device.memory_usage().bytes_by_kind.at("grads")),
            planned.at("grads"));
}

INSTANTIATE_TEST_SUITE_P(ZeroStages, ExactExchangeTest,
                         ::testing::Values(Exchanged{0, DType::kF32, DType::kF32},
                                           Exchanged{1, DType::kF32, DType::kF32},
                                           Exchanged{0, DType::kF32, DType::kBF16},
                                           Exchanged{1, DType::kF32, DType::kBF16},
                                           Exchanged{0, DType::kBF16, DType::kBF16},
                                           Exchanged{1, DType::kBF16, DType::kBF16}));

}  // namespace
}  // namespace filigree

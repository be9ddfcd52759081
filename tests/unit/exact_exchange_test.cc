// Inputs whose sums are exact: any number of ranks, with a sharded optimizer or a whole one, must
// leave the bits that one process leaves. Runs under mpirun at several numbers of ranks.
#include <gtest/gtest.h>

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
#include "trainer/training_state.h"

namespace filigree {
namespace {

constexpr int64_t kSamples = 7;  // no number of ranks tested divides them
constexpr int kSteps = 3;

// What one sample adds to a gradient: a multiple of 1/16 below 4, so that sums of seven and their
// squares are exact in any order.
float SampleGradient(int64_t step, int64_t sample, int parameter, int64_t slot) {
  const uint64_t stream = RngStream("gradient", "", static_cast<uint64_t>(parameter));
  const uint64_t draw = RandomBelow(static_cast<uint64_t>(step * kSamples + sample), stream,
                                    static_cast<uint64_t>(slot), 127);
  return (static_cast<float>(draw) - 63.0f) / 16.0f;
}

// A state trained for some steps on such gradients, over a communicator.
class ExactRun {
 public:
  ExactRun(const RunSpec& run, Communicator& communicator)
      : run_(run),
        communicator_(communicator),
        state_(run_, /*phase=*/0, {}, communicator, backend_, *stream_) {
    state_.InitializeValues(*stream_);
    for (int64_t step = 0; step < kSteps; ++step) Step(step);
    state_.exchange().WaitAllValues(*stream_);
  }

  TrainingState& state() { return state_; }
  const std::vector<double>& norms() const { return norms_; }
  const ExchangedBytes& bytes() const { return bytes_; }

  std::vector<std::byte> Gather(int parameter, StateKind kind) {
    return GatherSegment(state_.buffer(), parameter, kind, communicator_, *stream_);
  }

 private:
  void Step(int64_t step) {
    device_.ZeroAsync(state_.buffer().grads(), *stream_);
    const SampleRange mine = PartitionSamples(kSamples, communicator_.rank(), communicator_.size());
    const auto parameters = static_cast<int>(state_.parameters().size());
    const std::unique_ptr<Event> ready = device_.NewEvent();
    for (int parameter = parameters - 1; parameter >= 0; --parameter) {
      AddGradients(step, mine, parameter);
      ready->Record(*stream_);
      state_.exchange().MarkReady(parameter, *ready);
    }
    state_.exchange().WaitGrads(*stream_);
    OptimizerSpec spec;
    spec.clip_norm = 8;  // far below the norm: the global sum reaches every weight
    state_.exchange().WaitAllValues(*stream_);
    const Optimizer::Result result = state_.optimizer().Step(spec, 1e-2, step + 1, *stream_);
    EXPECT_FALSE(result.skipped);
    EXPECT_GT(result.grad_norm, spec.clip_norm);
    norms_.push_back(result.grad_norm);
    ready->Record(*stream_);
    state_.exchange().StartGatherValues(*ready);
    bytes_ = state_.exchange().TakeBytes();
  }

  void AddGradients(int64_t step, const SampleRange& samples, int parameter) {
    const Parameter& p = state_.parameters()[parameter];
    const std::vector<int64_t> logical = p.layout.LogicalIndices();
    float* grads = state_.buffer().Grads(parameter).As<float>();
    for (size_t slot = 0; slot < logical.size(); ++slot) {
      if (logical[slot] < 0) continue;
      for (int64_t i = 0; i < samples.count; ++i) {
        grads[slot] +=
            SampleGradient(step, samples.begin + i, parameter, static_cast<int64_t>(slot));
      }
    }
  }

  const RunSpec& run_;
  Communicator& communicator_;
  CpuDevice device_;
  CpuBackend backend_{device_};
  std::unique_ptr<Stream> stream_ = device_.NewStream();
  TrainingState state_;
  std::vector<double> norms_;
  ExchangedBytes bytes_;
};

class ExactExchangeTest : public ::testing::TestWithParam<int> {};

TEST_P(ExactExchangeTest, RanksLeaveTheBitsThatOneProcessLeaves) {
  RunSpec run = OddRun();
  run.zero_stage = GetParam();
  run.bucket_megabytes = 0.008;  // several buckets of each kind
  const auto world = MakeMpiCommunicator();
  const auto alone = MakeSingleProcessCommunicator();
  ExactRun ranks(run, *world), reference(run, *alone);
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

TEST_P(ExactExchangeTest, CountsWhatWasPredicted) {
  RunSpec run = OddRun();
  run.zero_stage = GetParam();
  run.bucket_megabytes = 0.008;
  const auto world = MakeMpiCommunicator();
  ExactRun ranks(run, *world);
  const ExchangedBytes predicted = PredictExchangedBytes(ranks.state().buffer().layout(),
                                                         world->size(), DType::kF32, DType::kF32);
  EXPECT_EQ(ranks.bytes().sparsified_grads, predicted.sparsified_grads);
  EXPECT_EQ(ranks.bytes().dense_grads, predicted.dense_grads);
  EXPECT_EQ(ranks.bytes().sparsified_values, predicted.sparsified_values);
  EXPECT_EQ(ranks.bytes().dense_values, predicted.dense_values);
  const bool sent = world->size() > 1;
  EXPECT_EQ(predicted.sparsified_grads > 0, sent);
  EXPECT_EQ(predicted.sparsified_values > 0, sent && GetParam() == 1);
}

INSTANTIATE_TEST_SUITE_P(ZeroStages, ExactExchangeTest, ::testing::Values(0, 1));

}  // namespace
}  // namespace filigree

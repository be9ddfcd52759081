// When a step's collectives start and who waits for them, as the trainer runs it under ZeRO-1: what
// lets an exchange hide behind compute.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "comm/done_work.h"
#include "kernels/base/rng.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_device.h"
#include "tests/unit/trainer_testing.h"
#include "trainer/train_step.h"

namespace filigree {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::IsEmpty;

enum class What { kReduce, kReduceWait, kGather, kGatherWait };
using Log = std::vector<std::pair<What, int64_t>>;  // the collective's first element

class LoggedWork final : public Work {
 public:
  LoggedWork(Log& log, What wait, int64_t offset) : log_(log), wait_(wait), offset_(offset) {}
  void Wait(Stream&) override { log_.emplace_back(wait_, offset_); }

 private:
  Log& log_;
  const What wait_;
  const int64_t offset_;
};

// Rank 0 of two, whose peer is a mirror: it has the same gradients and values. With `copies` it
// says that copy engines carry the exchange.
class LoggingCommunicator final : public Communicator {
 public:
  explicit LoggingCommunicator(bool copies) : copies_(copies) {}
  // Collectives over parts of these arrays are logged by their offset.
  void Watch(const FlatBuffer& buffer) { grads_ = buffer.grads(), values_ = buffer.values(); }
  Log Take() { return std::exchange(log_, {}); }

  int rank() const override { return 0; }
  int size() const override { return 2; }
  int local_rank() const override { return 0; }
  int local_size() const override { return 2; }
  const std::string& host() const override { return host_; }
  std::unique_ptr<Work> AllReduce(TensorView data, ReduceOp, const Event&) override {
    EXPECT_TRUE(data.dtype() == DType::kF64 && data.size() == 1)  // the norm
        << "ZeRO-1 scatters what it reduces";
    return std::make_unique<DoneWork>();
  }
  std::unique_ptr<Work> ReduceScatter(TensorView in, TensorView, ReduceOp, const Event&) override {
    EXPECT_TRUE(!copies_ || in.data() == grads_.data()) << "not the bucket that leaves last";
    return Start(What::kReduce, What::kReduceWait, Offset(in, grads_));
  }
  std::unique_ptr<Work> ReduceScatterThrough(TensorView landing, TensorView in, TensorView,
                                             const Event&) override {
    EXPECT_EQ(landing.size(), in.size());
    EXPECT_EQ(landing.dtype(), in.dtype());
    EXPECT_NE(in.data(), grads_.data()) << "nothing computes beside the last bucket";
    landings_.insert(landing.data());
    return Start(What::kReduce, What::kReduceWait, Offset(in, grads_));
  }
  bool copies_peer_memory() const override { return copies_; }
  // Where reduce-scatters landed.
  const std::set<const void*>& landings() const { return landings_; }
  std::unique_ptr<Work> AllGather(ConstTensorView, TensorView out, const Event&) override {
    return Start(What::kGather, What::kGatherWait, Offset(out, values_));
  }
  std::unique_ptr<Work> Broadcast(TensorView, int, const Event&) override {
    ADD_FAILURE() << "a step broadcasts nothing";
    return nullptr;
  }
  void AllReduceHost(std::span<double>, ReduceOp) override {}
  void AllReduceHost(std::span<int64_t>, ReduceOp) override {}
  void BroadcastHost(std::string*, int) override {}
  void Barrier() override {}
  [[noreturn]] void Abort(int exit_code) override { std::_Exit(exit_code); }

 private:
  static int64_t Offset(ConstTensorView part, ConstTensorView whole) {
    return part.As<float>() - whole.As<float>();
  }
  std::unique_ptr<Work> Start(What start, What wait, int64_t offset) {
    log_.emplace_back(start, offset);
    return std::make_unique<LoggedWork>(log_, wait, offset);
  }

  const bool copies_;
  std::set<const void*> landings_;
  const std::string host_ = "here";
  TensorView grads_, values_;
  Log log_;
};

std::vector<int64_t> Offsets(const Log& log, What what) {
  std::vector<int64_t> offsets;
  for (const auto& [entry, offset] : log) {
    if (entry == what) offsets.push_back(offset);
  }
  return offsets;
}

// Of the kinds of entries, runs of the same one taken together.
std::vector<What> Phases(const Log& log) {
  std::vector<What> phases;
  for (const auto& [what, offset] : log) {
    if (phases.empty() || phases.back() != what) phases.push_back(what);
  }
  return phases;
}

// Tied head, copies.
class ExchangeOrderTest : public ::testing::TestWithParam<std::tuple<bool, bool>> {
 protected:
  ExchangeOrderTest() {
    run_.model.tied_head = std::get<0>(GetParam());
    run_.zero_stage = 1;
    run_.bucket_megabytes = 0.008;  // several buckets of each kind
    state_ = std::make_unique<TrainingState>(run_, 0, std::map<std::string, SparseLayout>(),
                                             communicator_, backend_, *stream_);
    state_->InitializeValues(*stream_);
    communicator_.Watch(state_->buffer());
    for (const Bucket& bucket : state_->buffer().layout().buckets()) {
      buckets_.push_back(bucket.offset);
    }
    falling_.assign(buckets_.rbegin(), buckets_.rend());
    step_ = std::make_unique<TrainStep>(batch(), backend_, *stream_);
  }

  const BatchSpec& batch() const { return run_.phases.front().batch; }

  // One step of two micro-batches.
  Log Step(int64_t updates) {
    const int64_t sequences = 2 * batch().micro_batch_sequences;
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < sequences * batch().seq_len; ++i) {
      tokens.push_back(static_cast<int32_t>(
          RandomBelow(1, RngStream("tokens"), static_cast<uint64_t>(i), run_.model.vocab_size)));
    }
    const StepSamples samples = {.tokens = tokens.data(),
                                 .targets = tokens.data(),
                                 .sequences = sequences,
                                 .valid_tokens = static_cast<double>(tokens.size())};
    const StepResult result = step_->Run(*state_, samples, {}, 1e-3, updates);
    EXPECT_FALSE(result.update.skipped);
    return communicator_.Take();
  }

  RunSpec run_ = OddRun();
  CpuDevice device_;
  CpuBackend backend_{device_};
  std::unique_ptr<Stream> stream_ = device_.NewStream();
  const bool copies_ = std::get<1>(GetParam());
  LoggingCommunicator communicator_{copies_};
  std::unique_ptr<TrainingState> state_;
  std::unique_ptr<TrainStep> step_;
  std::vector<int64_t> buckets_, falling_;  // offsets, in forward order and back
};

TEST_P(ExchangeOrderTest, BucketsLeaveInBackwardAndComeBackInForward) {
  ASSERT_GT(buckets_.size(), 4u);
  const Log first = Step(1);
  // Every bucket leaves once, however many micro-batches were accumulated; nobody waits before the
  // last one has left, and each goes off again as soon as it is updated.
  EXPECT_THAT(Phases(first), ElementsAre(What::kReduce, What::kReduceWait, What::kGather));
  const std::vector<int64_t> left = Offsets(first, What::kReduce);
  EXPECT_THAT(left, ::testing::UnorderedElementsAreArray(buckets_));
  // The embedding's gradient is final last, with a tied head and without.
  EXPECT_EQ(left.back(), buckets_.front());
  EXPECT_THAT(Offsets(first, What::kReduceWait), ElementsAreArray(falling_));
  EXPECT_THAT(Offsets(first, What::kGather), ElementsAreArray(buckets_));

  // The values are waited for by the next forward pass, each bucket before its first use.
  const Log second = Step(2);
  EXPECT_EQ(Phases(second).front(), What::kGatherWait);
  EXPECT_THAT(Offsets(second, What::kGatherWait), ElementsAreArray(buckets_));
  EXPECT_THAT(Phases(second),
              ElementsAre(What::kGatherWait, What::kReduce, What::kReduceWait, What::kGather));
  state_->exchange().WaitAllValues(*stream_);
}

// One landing, which `plan` counts, serves all buckets in turn but the one that leaves last.
TEST_P(ExchangeOrderTest, CopiesLandInMemoryOfOneBucket) {
  Step(1);
  const FlatLayout& layout = state_->buffer().layout();
  const int64_t landing = LandingBytes(layout, run_.wire_dtype);
  EXPECT_GT(landing, 0);
  EXPECT_LT(landing, layout.total_count() * static_cast<int64_t>(SizeOf(run_.wire_dtype)));
  const auto held = static_cast<int64_t>(device_.memory_usage().bytes_by_kind.at("grads"));
  const int64_t grads = layout.total_count() * static_cast<int64_t>(SizeOf(run_.grad_dtype));
  EXPECT_EQ(held, grads + (copies_ ? landing : 0));
  EXPECT_EQ(communicator_.landings().size(), copies_ ? 1u : 0u);
}

TEST_P(ExchangeOrderTest, GradientsAloneGatherNothing) {
  Step(1);
  const int64_t sequences = batch().micro_batch_sequences;
  const std::vector<int32_t> tokens(sequences * batch().seq_len, 1);
  step_->Gradients(*state_, {.tokens = tokens.data(),
                             .targets = tokens.data(),
                             .sequences = sequences,
                             .valid_tokens = static_cast<double>(tokens.size())});
  const Log log = communicator_.Take();
  EXPECT_THAT(Offsets(log, What::kGather), IsEmpty());
  EXPECT_THAT(Offsets(log, What::kReduceWait), ElementsAreArray(falling_));
}

INSTANTIATE_TEST_SUITE_P(HeadsAndCopies, ExchangeOrderTest,
                         ::testing::Combine(::testing::Bool(), ::testing::Bool()));

}  // namespace
}  // namespace filigree

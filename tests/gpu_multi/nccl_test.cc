// NCCL between the ranks of mpirun, a GPU each.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <optional>

#include "comm/flat_buffer.h"
#include "comm/gradient_exchange.h"
#include "comm/watchdog.h"
#include "kernels/cuda/cuda_check.h"
#include "tests/gpu_multi/nccl_testing.h"
#include "tests/unit/comm_testing.h"

namespace filigree {
namespace {

TEST_F(NcclTest, CollectivesAreExact) {
  CollectiveCheck check(*comm_, *device_);
  for (const DType dtype : {DType::kF32, DType::kF64, DType::kBF16, DType::kI64}) check.Run(dtype);
  check.RunLarge(DType::kF32);
  check.RunLarge(DType::kBF16);
  check.HostCollectives();
  EXPECT_EQ(comm_->AsyncError(), "");
}

TEST_F(NcclTest, TheSameUnderTheWatchdog) {
  ASSERT_TRUE(Watch(&comm_, 60).ok());
  CollectiveCheck check(*comm_, *device_);
  check.Run(DType::kF32);
}

TEST_F(NcclTest, HostMemoryGoesThroughTheHost) {
  std::vector<float> values = {static_cast<float>(comm_->rank()), 2};
  const TensorView view(values.data(), DType::kF32, {2});
  const auto ready = device_->NewEvent();
  ready->Record(*stream_);
  comm_->AllReduce(view, ReduceOp::kSum, *ready)->Wait(*stream_);
  const int size = comm_->size();
  EXPECT_EQ(values[0], size * (size - 1) / 2);
  EXPECT_EQ(values[1], 2 * size);
}

// A collective waits for the work that it was given as `ready`, and the stream that waits for the
// collective waits for both.
TEST_F(NcclTest, FollowsTheComputeStream) {
  constexpr int64_t kCount = int64_t{1} << 24;
  TestVector data(*device_, DType::kF32, kCount, *stream_);
  TestVector source(*device_, DType::kF32, kCount, *stream_);
  source.Set([&](int64_t i) { return InputOf(comm_->rank(), i); });
  const auto ready = device_->NewEvent();
  for (int round = 0; round < 5; ++round) {
    device_->ZeroAsync(data.view(), *stream_);
    for (int copy = 0; copy < 20; ++copy) device_->CopyAsync(data.view(), source.view(), *stream_);
    ready->Record(*stream_);
    const auto work = comm_->AllReduce(data.view(), ReduceOp::kSum, *ready);
    // Recorded again at once, as the trainer does: the collective keeps its own moment.
    ready->Record(*stream_);
    work->Wait(*stream_);
    const std::vector<double> sums = data.Get();
    for (int64_t i = 0; i < kCount; i += 9973) {
      double expected = 0;
      for (int rank = 0; rank < comm_->size(); ++rank) expected += InputOf(rank, i);
      ASSERT_EQ(sums[i], expected) << "element " << i << " of round " << round;
    }
  }
}

// Milliseconds of what `submit` puts on `stream`, as the GPU saw it.
template <typename Submit>
float Milliseconds(Stream& stream, const Submit& submit) {
  cudaEvent_t begin, end;
  CUDA_CHECK(cudaEventCreate(&begin));
  CUDA_CHECK(cudaEventCreate(&end));
  CUDA_CHECK(cudaEventRecord(begin, NativeStream(stream)));
  submit();
  CUDA_CHECK(cudaEventRecord(end, NativeStream(stream)));
  CUDA_CHECK(cudaEventSynchronize(end));
  float elapsed = 0;
  CUDA_CHECK(cudaEventElapsedTime(&elapsed, begin, end));
  CUDA_CHECK(cudaEventDestroy(begin));
  CUDA_CHECK(cudaEventDestroy(end));
  return elapsed;
}

// Submitting blocks no host, and the compute stream goes on while a collective runs: both together
// take less than one after the other.
TEST_F(NcclTest, OverlapsWithComputeAndBlocksNobody) {
  constexpr int64_t kCount = int64_t{1} << 27;
  TestVector exchanged(*device_, DType::kBF16, kCount, *stream_);
  const DeviceBuffer from = device_->Allocate(kCount, "test"),
                     to = device_->Allocate(kCount, "test");
  const auto ready = device_->NewEvent();
  const auto compute = [&] {
    for (int i = 0; i < 40; ++i) {
      device_->CopyAsync(to.View(DType::kU8, kCount), from.View(DType::kU8, kCount), *stream_);
    }
  };
  const auto begin = [&] {
    ready->Record(*stream_);
    return comm_->AllReduce(exchanged.view(), ReduceOp::kSum, *ready);
  };
  begin()->Wait(*stream_);
  stream_->Synchronize();
  comm_->Barrier();
  float apart = 1e9f, together = 1e9f;
  for (int round = 0; round < 5; ++round) {
    comm_->Barrier();
    const float alone = Milliseconds(*stream_, [&] { begin()->Wait(*stream_); });
    const float computing = Milliseconds(*stream_, compute);
    apart = std::min(apart, alone + computing);
    comm_->Barrier();
    double host_ms = 0;
    const float both = Milliseconds(*stream_, [&] {
      const auto start = std::chrono::steady_clock::now();
      const auto work = begin();
      compute();
      work->Wait(*stream_);
      host_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
                    .count();
    });
    together = std::min(together, both);
    EXPECT_LT(host_ms, both) << "the host waited for the GPU";
  }
  RecordProperty("apart_ms", std::to_string(apart));
  RecordProperty("together_ms", std::to_string(together));
  std::printf("collective and compute: %.2f ms apart, %.2f ms together\n", apart, together);
  EXPECT_LT(together, 0.95f * apart);
}

// The exchange over NCCL: exact sums in the own slices, updated values gathered, bytes as
// predicted, with gradients that travel as they are and rounded.
class NcclExchangeTest : public NcclTest, public ::testing::WithParamInterface<DType> {
 protected:
  std::optional<NarrowWire> Wire(Backend& backend) const {
    if (GetParam() == DType::kF32) return std::nullopt;
    return NarrowWire{.dtype = GetParam(),
                      .round = [&backend](ConstTensorView from, TensorView to, Stream& stream) {
                        backend.Round({.in = from, .out = to}, stream);
                      }};
  }

  // A step's exchange of inputs that differ by `round`, each element checked.
  void Exchange(const std::vector<SegmentSpec>& specs, int round, FlatBuffer& buffer,
                GradientExchange& exchange) {
    const int64_t total = buffer.layout().total_count();
    const auto input = [&](int rank, int64_t i) { return InputOf(rank + round, i); };
    TestVector grads(*device_, DType::kF32, total, *stream_);
    grads.Set([&](int64_t i) { return input(comm_->rank(), i); });
    device_->CopyAsync(buffer.grads(), grads.view(), *stream_);
    const auto event = device_->NewEvent();
    for (int segment = static_cast<int>(specs.size()) - 1; segment >= 0; --segment) {
      event->Record(*stream_);
      exchange.MarkReady(segment, *event);
    }
    exchange.EndBackward();
    exchange.WaitGrads(*stream_);
    TestVector summed(*device_, GetParam(), total, *stream_);
    device_->CopyAsync(summed.view(), exchange.summed_grads(), *stream_);
    const std::vector<double> sums = summed.Get();
    for (const OwnedRange& range : buffer.owned()) {
      for (int64_t i = range.flat_begin; i < range.flat_begin + range.count; ++i) {
        double expected = 0;
        for (int rank = 0; rank < comm_->size(); ++rank) expected += input(rank, i);
        ASSERT_EQ(sums[i], expected) << "gradient " << i << " of " << buffer.layout().shards()
                                     << " shards in round " << round;
      }
    }
    GatherValues(round, buffer, exchange);
  }

  // Every rank writes its own slices of the values, and finds all of them.
  void GatherValues(int round, FlatBuffer& buffer, GradientExchange& exchange) {
    const FlatLayout& layout = buffer.layout();
    TestVector values(*device_, DType::kBF16, layout.total_count(), *stream_);
    values.Set([&](int64_t i) { return InputOf(round, i); });
    for (size_t b = 0; b < layout.buckets().size(); ++b) {
      const FlatLayout::Slice own = layout.slice(static_cast<int>(b), buffer.shard());
      device_->CopyAsync(buffer.values().Range(own.flat_offset, own.count),
                         values.Slice(own.flat_offset, own.count), *stream_);
    }
    const auto updated = device_->NewEvent();
    updated->Record(*stream_);
    exchange.StartGatherValues(*updated);
    exchange.WaitAllValues(*stream_);
    device_->CopyAsync(values.view(), buffer.values(), *stream_);
    const std::vector<double> gathered = values.Get();
    for (int64_t i = 0; i < layout.total_count(); ++i) {
      ASSERT_EQ(gathered[i], InputOf(round, i)) << "value " << i << " in round " << round;
    }
  }
};

TEST_P(NcclExchangeTest, IsExactAndCounted) {
  std::printf("copy engines %s\n", comm_->copies_peer_memory() ? "carry it" : "do not serve here");
  const int size = comm_->size();
  const std::unique_ptr<Backend> backend = MakeCudaBackend(*device_);
  const std::vector<SegmentSpec> specs = {{.count = 1000, .kind = TrafficKind::kDense},
                                          {.count = 70001, .kind = TrafficKind::kSparsified},
                                          {.count = 333, .kind = TrafficKind::kDense},
                                          {.count = 50000, .kind = TrafficKind::kSparsified},
                                          {.count = 2000003, .kind = TrafficKind::kDense}};
  for (const int shards : {1, size}) {
    const FlatLayout layout = FlatLayout::Build(specs, shards, /*bucket_elements=*/4096);
    const int shard = shards == 1 ? 0 : comm_->rank();
    FlatBuffer buffer(*device_, layout, shard, DType::kBF16, DType::kF32, *stream_, {}, {},
                      shards == 1 ? nullptr : comm_.get());
    GradientExchange exchange(buffer, *comm_, Wire(*backend));
    // Several rounds: buckets and steps take turns in what memory the exchange keeps between them.
    for (int round = 0; round < 3; ++round) {
      Exchange(specs, round, buffer, exchange);
      if (round < 2) exchange.TakeBytes();
    }
    const ExchangedBytes counted = exchange.TakeBytes();
    const ExchangedBytes planned = PredictExchangedBytes(layout, size, DType::kBF16, GetParam());
    EXPECT_EQ(counted.sparsified_grads, planned.sparsified_grads);
    EXPECT_EQ(counted.dense_grads, planned.dense_grads);
    EXPECT_EQ(counted.sparsified_values, planned.sparsified_values);
    EXPECT_EQ(counted.dense_values, planned.dense_values);
  }
}

INSTANTIATE_TEST_SUITE_P(Wires, NcclExchangeTest, ::testing::Values(DType::kF32, DType::kBF16));

}  // namespace
}  // namespace filigree

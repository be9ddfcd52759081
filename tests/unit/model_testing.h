// A tiny model in double precision, with its flat buffer and random values, for tests of its
// mathematics.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "comm/flat_buffer.h"
#include "kernels/base/rng.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/parallel.h"
#include "trainer/model/model.h"

namespace filigree {

// Host memory of a micro-batch.
struct TestBatch {
  std::vector<int32_t> tokens, targets;
  int64_t seq_len = 0;

  int64_t count() const { return static_cast<int64_t>(tokens.size()); }
  MicroBatch view() const {
    return {.tokens = ConstTensorView(tokens.data(), DType::kI32, {count()}),
            .targets = ConstTensorView(targets.data(), DType::kI32, {count()}),
            .seq_len = seq_len};
  }
  // Tokens and targets drawn from the vocabulary, every fifth target masked.
  static TestBatch Random(int64_t sequences, int64_t seq_len, int64_t vocab_size, uint64_t seed) {
    TestBatch batch;
    batch.seq_len = seq_len;
    for (int64_t t = 0; t < sequences * seq_len; ++t) {
      batch.tokens.push_back(
          static_cast<int32_t>(RandomBits(seed, RngStream("tokens"), t) % vocab_size));
      const auto target =
          static_cast<int32_t>(RandomBits(seed, RngStream("targets"), t) % vocab_size);
      batch.targets.push_back(t % 5 == 3 ? -1 : target);
    }
    return batch;
  }
};

class TestModel {
 public:
  // On a device with rows aligned as given.
  TestModel(const ModelSpec& spec, const std::vector<SparsitySpec>& sparsity, int64_t sequences,
            int64_t seq_len, const std::map<std::string, SparseLayout>& layouts = {},
            int64_t row_alignment = 1)
      : device_(DType::kF64, row_alignment),
        model_(Model::Create(spec, sparsity, /*seed=*/3, layouts, backend_)) {
    SetCpuThreads(1);  // products of a microsecond: a second thread would only wait for the first
    std::vector<SegmentSpec> segments;
    for (const Parameter& p : model_->parameters())
      segments.push_back({.count = p.segment_count()});
    buffer_ = FlatBuffer(device_, FlatLayout::Build(segments, 1, 1 << 20), 0, DType::kF64,
                         DType::kF64, *stream_);
    model_->Bind(buffer_);
    model_->ReserveActivations(sequences, seq_len, /*training=*/true);
  }

  Model& model() { return *model_; }
  const std::vector<Parameter>& parameters() const { return model_->parameters(); }
  Stream& stream() { return *stream_; }
  double* values(int parameter) { return buffer_.Values(parameter).As<double>(); }
  double* grads(int parameter) { return buffer_.Grads(parameter).As<double>(); }

  // Gains about 1, everything else of a size that makes every nonlinearity bend; padding stays
  // zero.
  void Randomize() {
    for (size_t i = 0; i < parameters().size(); ++i) {
      const Parameter& p = parameters()[i];
      const double mean = p.init == InitKind::kOnes ? 1.0 : 0.0;
      const std::vector<int64_t> logical = p.layout.LogicalIndices();
      for (size_t slot = 0; slot < logical.size(); ++slot) {
        if (logical[slot] < 0) continue;
        values(static_cast<int>(i))[slot] =
            mean + 0.3 * RandomNormal(11, RngStream("test", p.name), logical[slot]);
      }
    }
    model_->ValuesChanged();
  }

  // Sum of the batch's losses.
  double Loss(const TestBatch& batch) {
    losses_.assign(batch.count(), 0.0);
    model_->ForwardLoss(batch.view(), losses_view(), *stream_);
    return SumLosses();
  }
  // The same, with gradients of loss_scale times it added.
  double LossAndGradients(const TestBatch& batch, double loss_scale) {
    losses_.assign(batch.count(), 0.0);
    model_->ForwardBackward(batch.view(), loss_scale, losses_view(), *stream_);
    return SumLosses();
  }
  // Per-token losses of the last pass.
  const std::vector<double>& losses() const { return losses_; }
  void ZeroGradients() { device_.ZeroAsync(buffer_.grads(), *stream_); }

 private:
  TensorView losses_view() {
    return TensorView(losses_.data(), DType::kF64, {static_cast<int64_t>(losses_.size())});
  }
  double SumLosses() const {
    double sum = 0;
    for (double loss : losses_) sum += loss;
    return sum;
  }

  CpuDevice device_;
  CpuBackend backend_{device_};
  std::unique_ptr<Stream> stream_ = device_.NewStream();
  FlatBuffer buffer_;
  std::unique_ptr<Model> model_;
  std::vector<double> losses_;
};

}  // namespace filigree

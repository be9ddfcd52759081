// Whole decoders on the GPU in bf16 against the CPU's in double precision: losses and the gradient
// of every parameter, both families, every parameterisation of the registry. The operations are
// tested one by one elsewhere; here the question is whether the model puts them together alike on
// both devices.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "comm/flat_buffer.h"
#include "kernels/base/rng.h"
#include "tests/gpu/gpu_testing.h"
#include "tests/gpu/small_model.h"
#include "trainer/linear/linear.h"
#include "trainer/model/model.h"
#include "trainer/read_floats.h"

namespace filigree {
namespace {

constexpr int64_t kSequences = 3;
constexpr int64_t kSeqLen = 128;

std::vector<SparsitySpec> HalfOf(std::string_view parameterisation) {
  SparsitySpec sparsity;
  sparsity.parameterisation = std::string(parameterisation);
  sparsity.sparsity = parameterisation == "dense" ? 0.0 : 0.5;
  sparsity.block_out = sparsity.block_in = 64;
  sparsity.rank = 64;
  return {sparsity};
}

// A model on one device with its state. Values are drawn by logical place and rounded to bf16, so
// that both sides hold the same numbers.
class Side {
 public:
  Side(Device& device, Backend& backend, const ModelSpec& spec,
       const std::vector<SparsitySpec>& sparsity)
      : device_(device),
        stream_(device.NewStream()),
        model_(Model::Create(spec, sparsity, /*seed=*/3, {}, backend)) {
    std::vector<SegmentSpec> segments;
    for (const Parameter& p : model_->parameters()) {
      segments.push_back({.count = p.segment_count()});
    }
    buffer_ = FlatBuffer(device_, FlatLayout::Build(segments, 1, 1 << 20), 0,
                         device.compute_dtype(), DType::kF32, *stream_);
    model_->Bind(buffer_);
    model_->ReserveActivations(kSequences, kSeqLen, /*training=*/true);
    for (size_t i = 0; i < parameters().size(); ++i) Draw(static_cast<int>(i));
    device_.ZeroAsync(buffer_.grads(), *stream_);
    model_->ValuesChanged();
  }
  const std::vector<Parameter>& parameters() const { return model_->parameters(); }

  // Mean loss a token; the gradients of it are left in the state.
  double LossAndGradients(const std::vector<int32_t>& tokens, const std::vector<int32_t>& targets) {
    const auto count = static_cast<int64_t>(tokens.size());
    const DeviceBuffer ids = device_.Allocate(2 * count * sizeof(int32_t), "test");
    const TensorView both = ids.View(DType::kI32, 2 * count);
    const DeviceBuffer losses = device_.Allocate(count * sizeof(float), "test");
    const TensorView loss_view = losses.View(DType::kF32, count);
    device_.CopyAsync(both.Range(0, count), ConstTensorView(tokens.data(), DType::kI32, {count}),
                      *stream_);
    device_.CopyAsync(both.Range(count, count),
                      ConstTensorView(targets.data(), DType::kI32, {count}), *stream_);
    model_->ForwardBackward(
        {.tokens = both.Range(0, count), .targets = both.Range(count, count), .seq_len = kSeqLen},
        1.0 / static_cast<double>(count), loss_view, *stream_);
    double sum = 0;
    for (const float loss : ReadFloats(device_, loss_view, *stream_)) sum += loss;
    return sum / static_cast<double>(count);
  }
  std::vector<float> Gradient(int parameter) {
    return ReadFloats(device_, buffer_.Grads(parameter), *stream_);
  }

 private:
  void Draw(int index) {
    const Parameter& p = parameters()[index];
    const double mean = p.init == InitKind::kOnes ? 1.0 : 0.0;
    const std::vector<int64_t> logical = p.layout.LogicalIndices();
    std::vector<float> values(p.segment_count(), 0.0f);
    std::vector<BFloat16> rounded(values.size());
    for (size_t slot = 0; slot < logical.size(); ++slot) {
      if (logical[slot] < 0) continue;
      rounded[slot] = BFloat16(static_cast<float>(
          mean + 0.05 * RandomNormal(11, RngStream("parity", p.name), logical[slot])));
      values[slot] = static_cast<float>(rounded[slot]);
    }
    const bool bf16 = device_.compute_dtype() == DType::kBF16;
    const void* data = bf16 ? static_cast<const void*>(rounded.data()) : values.data();
    device_.CopyAsync(buffer_.Values(index),
                      ConstTensorView(data, device_.compute_dtype(), {p.segment_count()}),
                      *stream_);
    stream_->Synchronize();
  }

  Device& device_;
  std::unique_ptr<Stream> stream_;
  FlatBuffer buffer_;
  std::unique_ptr<Model> model_;
};

// Distance and size of a gradient, in the root of the sum of squares.
struct Difference {
  double error = 0, size = 0;
};

Difference Compare(const std::vector<float>& found, const std::vector<float>& expected) {
  Difference d;
  for (size_t i = 0; i < expected.size(); ++i) {
    d.error += (found[i] - expected[i]) * (found[i] - expected[i]);
    d.size += expected[i] * expected[i];
  }
  return {std::sqrt(d.error), std::sqrt(d.size)};
}

class GpuModelTest : public GpuTest, public ::testing::WithParamInterface<ModelFamily> {};

TEST_P(GpuModelTest, LossAndEveryGradientFollowTheCpu) {
  const ModelSpec spec = SmallGpuModel(GetParam(), /*layers=*/2, kSeqLen);
  std::vector<int32_t> tokens, targets;
  for (int64_t t = 0; t < kSequences * kSeqLen; ++t) {
    tokens.push_back(static_cast<int32_t>(RandomBits(1, RngStream("tokens"), t) % spec.vocab_size));
    targets.push_back(t % 5 == 3 ? -1
                                 : static_cast<int32_t>(RandomBits(1, RngStream("targets"), t) %
                                                        spec.vocab_size));
  }
  CpuDevice host(DType::kF32);
  CpuBackend reference(host);
  for (const Parameterisation& row : Parameterisations()) {
    SCOPED_TRACE(row.name);
    Side expected(host, reference, spec, HalfOf(row.name));
    Side found(device(), gpu(), spec, HalfOf(row.name));
    const double loss = expected.LossAndGradients(tokens, targets);
    // Activations and products are rounded to 2^-9 on the GPU; errors of a few hundred roundings in
    // a row partly cancel. A missing term, scale or transposition is a matter of whole gradients.
    EXPECT_NEAR(found.LossAndGradients(tokens, targets), loss, 2e-3 * loss);
    double largest = 0;
    for (size_t i = 0; i < expected.parameters().size(); ++i) {
      const std::vector<float> gradient = expected.Gradient(static_cast<int>(i));
      largest = std::max(largest, Compare(gradient, gradient).size);
    }
    ASSERT_EQ(found.parameters().size(), expected.parameters().size());
    for (size_t i = 0; i < expected.parameters().size(); ++i) {
      const auto index = static_cast<int>(i);
      const Difference d = Compare(found.Gradient(index), expected.Gradient(index));
      // A bias of keys shifts all of a query's scores alike, which softmax ignores: its gradient is
      // zero, and what rounding leaves of it is held against the model's gradients instead of its
      // own.
      EXPECT_LE(d.error, 0.03 * d.size + 1e-3 * largest) << expected.parameters()[i].name;
    }
  }
}

// A byte of GELU's derivative for backward, against its input in bf16: the reference's gradients are
// missed by no more than twice as much, and the loss is the same. Everything behind the first
// feed-forward block from the end has passed through codes.
TEST_P(GpuModelTest, CodesOfGelusDerivativeStayWithinTwiceBf16sError) {
  ModelSpec spec = SmallGpuModel(GetParam(), /*layers=*/4, kSeqLen);
  if (spec.family != ModelFamily::kGpt2) GTEST_SKIP() << "no GELU";
  std::vector<int32_t> tokens, targets;
  for (int64_t t = 0; t < kSequences * kSeqLen; ++t) {
    tokens.push_back(static_cast<int32_t>(RandomBits(1, RngStream("tokens"), t) % spec.vocab_size));
    targets.push_back(
        static_cast<int32_t>(RandomBits(1, RngStream("targets"), t) % spec.vocab_size));
  }
  CpuDevice host(DType::kF32);
  CpuBackend backend(host);
  for (const char* parameterisation : {"dense", "masked", "block_sparse"}) {
    SCOPED_TRACE(parameterisation);
    spec.gelu_derivative_bits = 0;
    Side reference(host, backend, spec, HalfOf(parameterisation));
    Side bf16(device(), gpu(), spec, HalfOf(parameterisation));
    spec.gelu_derivative_bits = 8;
    Side coded(device(), gpu(), spec, HalfOf(parameterisation));
    reference.LossAndGradients(tokens, targets);
    const double loss = bf16.LossAndGradients(tokens, targets);
    EXPECT_NEAR(coded.LossAndGradients(tokens, targets), loss, 2e-3 * loss);
    double worst = 0, largest = 0;
    for (size_t i = 0; i < reference.parameters().size(); ++i) {
      const std::vector<float> gradient = reference.Gradient(static_cast<int>(i));
      largest = std::max(largest, Compare(gradient, gradient).size);
    }
    for (size_t i = 0; i < reference.parameters().size(); ++i) {
      const auto index = static_cast<int>(i);
      const std::vector<float> expected = reference.Gradient(index);
      const Difference usual = Compare(bf16.Gradient(index), expected);
      const Difference codes = Compare(coded.Gradient(index), expected);
      if (codes.size < 1e-6 * largest) continue;  // biases of keys, whose gradients are zero
      EXPECT_LE(codes.error, 2 * usual.error + 1e-3 * codes.size)
          << reference.parameters()[i].name;
      worst = std::max(worst, codes.error / usual.error);
    }
    std::printf("%s: errors of gradients are at most %.2f times those without codes\n",
                parameterisation, worst);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, GpuModelTest,
                         ::testing::Values(ModelFamily::kLlama, ModelFamily::kGpt2),
                         [](const auto& info) {
                           return info.param == ModelFamily::kLlama ? "Llama" : "Gpt2";
                         });

}  // namespace
}  // namespace filigree

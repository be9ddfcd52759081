// Losses and logit gradients on the GPU: rows in shared memory and beyond it, padding, masks.
#include <cmath>
#include <string>

#include "tests/gpu/gpu_testing.h"

namespace filigree {
namespace {

struct Shape {
  int64_t rows, vocab, cols, gap;
};
// The last two are GPT-2's vocabulary, and one of which no row fits into shared memory.
constexpr Shape kShapes[] = {{1, 1, 1, 0},         {5, 7, 7, 3},          {9, 48, 48, 0},
                             {9, 41, 48, 8},       {9, 48, 48, 4},        {17, 513, 513, 0},
                             {33, 2048, 2048, 0},  {33, 2041, 2112, 8},   {7, 5461, 5461, 0},
                             {3, 32000, 32000, 0}, {37, 50257, 50304, 0}, {5, 151669, 151680, 0}};

std::string Name(const char* what, const Shape& s) {
  return std::string(what) + " of " + std::to_string(s.rows) + " x " + std::to_string(s.vocab) +
         " in " + std::to_string(s.cols);
}

// Spread over the vocabulary, its first and last entry among them; every `masked`-th is masked.
Mirror Targets(const Shape& s, int64_t masked) {
  std::vector<double> values(s.rows);
  for (int64_t i = 0; i < s.rows; ++i) {
    const int64_t target = i == 0 ? s.vocab - 1 : (i - 1) * 7919 % s.vocab;
    values[i] = static_cast<double>(i % masked == masked - 1 ? -1 : target);
  }
  return Mirror::Of(1, s.rows, DType::kI32, values);
}

// Beside the parity in the mean: every element is the correctly rounded one or its neighbour, small
// probabilities too. The target's is p - 1, whose error is relative to 1.
void ExpectEveryElement(Mirror& logits, double loss_scale, const std::string& what) {
  const auto found = logits.Download(), expected = logits.Reference();
  for (size_t i = 0; i < expected.size(); ++i) {
    const double limit = expected[i] < 0 ? loss_scale / 128 : 0.0045 * expected[i] + 1e-37;
    ASSERT_LE(std::abs(found[i] - expected[i]), limit) << what << ": element " << i;
  }
}

class GpuCrossEntropyTest : public GpuTest {
 protected:
  void Run(const Shape& s, Mirror& logits, Mirror& targets, Mirror& losses, double loss_scale) {
    gpu().CrossEntropy({logits.gpu(), targets.gpu_flat(), losses.gpu_flat(), s.vocab, loss_scale},
                       stream());
    cpu().CrossEntropy({logits.cpu(), targets.cpu_flat(), losses.cpu_flat(), s.vocab, loss_scale},
                       cpu_stream());
    stream().Synchronize();
  }
};

TEST_F(GpuCrossEntropyTest, LossAndGradient) {
  for (const Shape& s : kShapes) {
    auto logits = Mirror::Random(s.rows, s.cols, DType::kBF16, 1, 3, s.gap);
    auto targets = Targets(s, 4), losses = Mirror::Output(1, s.rows, DType::kF32);
    Run(s, logits, targets, losses, 0.25);
    ExpectParity(losses, Name("loss", s), 2e-6);
    ExpectParity(logits, Name("gradient", s));
    ExpectEveryElement(logits, 0.25, Name("gradient", s));
  }
}

TEST_F(GpuCrossEntropyTest, LossScaleOnTheDeviceIsTheSame) {
  const DeviceBuffer buffer = device().Allocate(sizeof(float), "test");
  const TensorView on_device = buffer.View(DType::kF32, 1);
  const float loss_scale = 0.3f;
  device().CopyAsync(on_device, ConstTensorView(&loss_scale, DType::kF32, {1}), stream());
  for (const Shape& s : kShapes) {
    auto logits = Mirror::Random(s.rows, s.cols, DType::kBF16, 1, 3, s.gap);
    auto same = Mirror::Random(s.rows, s.cols, DType::kBF16, 1, 3, s.gap);
    auto targets = Targets(s, 4), losses = Mirror::Output(1, s.rows, DType::kF32);
    Run(s, logits, targets, losses, loss_scale);
    gpu().CrossEntropy({.logits = same.gpu(),
                        .targets = targets.gpu_flat(),
                        .losses = losses.gpu_flat(),
                        .vocab_size = s.vocab,
                        .loss_scale = 1,
                        .loss_scale_on_device = on_device},
                       stream());
    stream().Synchronize();
    EXPECT_EQ(same.Download(), logits.Download()) << Name("gradient", s);
  }
}

TEST_F(GpuCrossEntropyTest, EvaluationLeavesTheLogits) {
  for (const Shape& s : kShapes) {
    auto logits = Mirror::Random(s.rows, s.cols, DType::kBF16, 1, 3, s.gap);
    auto targets = Targets(s, 4), losses = Mirror::Output(1, s.rows, DType::kF32);
    Run(s, logits, targets, losses, 0);
    ExpectParity(losses, Name("loss", s), 2e-6);
    ExpectEqual(logits, Name("logits", s));
  }
}

TEST_F(GpuCrossEntropyTest, MaskedRowsAreZero) {
  for (const Shape& s : kShapes) {
    auto logits = Mirror::Random(s.rows, s.cols, DType::kBF16, 1, 3, s.gap);
    auto targets = Targets(s, 1), losses = Mirror::Output(1, s.rows, DType::kF32);
    Run(s, logits, targets, losses, 1);
    ExpectEqual(losses, Name("masked loss", s));
    ExpectEqual(logits, Name("masked gradient", s));
  }
}

// Far from zero, exponentials overflow unless the maximum is taken off first; and padding must not
// take part, though its logits are the largest.
TEST_F(GpuCrossEntropyTest, LargeLogitsAndLargerPadding) {
  for (const Shape& s : {Shape{3, 41, 48, 0}, Shape{3, 41, 47, 0}, Shape{3, 120001, 120008, 0}}) {
    std::vector<double> values;
    for (int64_t i = 0; i < s.rows; ++i) {
      for (int64_t j = 0; j < s.cols; ++j) {
        values.push_back(j < s.vocab ? (i == 1 ? -900.0 : 900.0) + 4 * (j % 5) : 2000.0);
      }
    }
    auto logits = Mirror::Of(s.rows, s.cols, DType::kBF16, values);
    auto targets = Targets(s, 4), losses = Mirror::Output(1, s.rows, DType::kF32);
    Run(s, logits, targets, losses, 1);
    ExpectParity(losses, Name("large loss", s), 1e-5);
    ExpectParity(logits, Name("large gradient", s));
    const auto gradient = logits.Download();
    for (int64_t i = 0; i < s.rows; ++i) {
      for (int64_t j = s.vocab; j < s.cols; ++j) ASSERT_EQ(gradient[i * s.cols + j], 0);
    }
  }
}

// Equal logits: the loss is log V, every probability 1 / V.
TEST_F(GpuCrossEntropyTest, EqualLogits) {
  const Shape s = {5, 4096, 4096, 0};
  auto logits = Mirror::Of(s.rows, s.cols, DType::kBF16, std::vector<double>(s.rows * s.cols, -1));
  auto targets = Targets(s, 100), losses = Mirror::Output(1, s.rows, DType::kF32);
  Run(s, logits, targets, losses, 1);
  for (double loss : losses.Download()) EXPECT_NEAR(loss, std::log(4096.0), 2e-6);
  const auto gradient = logits.Download();
  EXPECT_EQ(gradient[0], 1.0 / 4096);
  EXPECT_EQ(gradient[s.vocab - 1], -1);  // 1 - 1 / 4096, rounded
}

}  // namespace
}  // namespace filigree

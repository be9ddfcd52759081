// The loss beside a teacher on the GPU: shapes, alignments, temperatures, padding, masks.
#include <cmath>
#include <string>
#include <utility>

#include "tests/gpu/gpu_testing.h"

namespace filigree {
namespace {

struct Shape {
  int64_t rows, vocab, cols, teacher_cols, gap;
};
constexpr Shape kShapes[] = {{1, 1, 1, 1, 0},
                             {5, 7, 7, 9, 3},
                             {9, 41, 48, 64, 8},
                             {9, 41, 48, 41, 0},
                             {33, 2048, 2048, 2048, 0},
                             {33, 2041, 2112, 2048, 8},
                             {7, 5461, 5461, 5504, 0},
                             {5, 50257, 50304, 50304, 0},
                             {3, 151669, 151680, 151680, 0}};

std::string Name(const char* what, const Shape& s, double temperature) {
  return std::string(what) + " of " + std::to_string(s.rows) + " x " + std::to_string(s.vocab) +
         " at temperature " + std::to_string(temperature);
}

// Every `masked`-th is masked.
Mirror Targets(const Shape& s, int64_t masked) {
  std::vector<double> values(s.rows);
  for (int64_t i = 0; i < s.rows; ++i) {
    values[i] = static_cast<double>(i % masked == masked - 1 ? -1 : i * 7919 % s.vocab);
  }
  return Mirror::Of(1, s.rows, DType::kI32, values);
}

class GpuDistillationTest : public GpuTest {
 protected:
  struct Problem {
    Mirror logits, teacher, targets, losses, divergences;
  };
  Problem Make(const Shape& s, int64_t masked = 4) {
    return With(s, masked, Mirror::Random(s.rows, s.cols, DType::kBF16, 1, 3, s.gap),
                Mirror::Random(s.rows, s.teacher_cols, DType::kBF16, 2, 4, s.gap));
  }
  Problem With(const Shape& s, int64_t masked, Mirror logits, Mirror teacher) {
    return {std::move(logits), std::move(teacher), Targets(s, masked),
            Mirror::Output(1, s.rows, DType::kF32), Mirror::Output(1, s.rows, DType::kF32)};
  }
  void Run(const Shape& s, Problem& p, double temperature, double alpha, double loss_scale) {
    const auto args = [&](TensorView logits, TensorView teacher, TensorView targets,
                          TensorView losses, TensorView divergences) {
      return DistillationLossArgs{.logits = logits,
                                  .teacher_logits = teacher,
                                  .targets = targets,
                                  .losses = losses,
                                  .divergences = divergences,
                                  .vocab_size = s.vocab,
                                  .temperature = temperature,
                                  .alpha = alpha,
                                  .loss_scale = loss_scale};
    };
    gpu().DistillationLoss(args(p.logits.gpu(), p.teacher.gpu(), p.targets.gpu_flat(),
                                p.losses.gpu_flat(), p.divergences.gpu_flat()),
                           stream());
    cpu().DistillationLoss(args(p.logits.cpu(), p.teacher.cpu(), p.targets.cpu_flat(),
                                p.losses.cpu_flat(), p.divergences.cpu_flat()),
                           cpu_stream());
    stream().Synchronize();
  }
};

TEST_F(GpuDistillationTest, LossesAndGradient) {
  for (const Shape& s : kShapes) {
    for (double temperature : {1.0, 2.0, 0.7}) {
      Problem p = Make(s);
      Run(s, p, temperature, 0.4, 0.25);
      // A vocabulary of one has no loss to be relative to.
      if (s.vocab > 1) {
        ExpectParity(p.losses, Name("loss", s, temperature), 2e-6);
        ExpectParity(p.divergences, Name("divergence", s, temperature), 1e-5);
        ExpectParity(p.logits, Name("gradient", s, temperature));
      }
      EXPECT_TRUE(p.logits.GapsAreIntact() && p.teacher.GapsAreIntact());
      ExpectEqual(p.teacher, Name("teacher's logits", s, temperature));
    }
  }
}

TEST_F(GpuDistillationTest, WithoutALossScaleTheLogitsStay) {
  for (const Shape& s : kShapes) {
    Problem p = Make(s);
    Run(s, p, 2, 0.4, 0);
    ExpectEqual(p.logits, Name("logits", s, 2));
    if (s.vocab > 1) ExpectParity(p.divergences, Name("divergence", s, 2), 1e-5);
  }
}

TEST_F(GpuDistillationTest, MaskedRowsAndPaddingAreZero) {
  for (const Shape& s : kShapes) {
    Problem p = Make(s, /*masked=*/1);
    Run(s, p, 2, 0.4, 1);
    ExpectEqual(p.losses, Name("masked loss", s, 2));
    ExpectEqual(p.divergences, Name("masked divergence", s, 2));
    ExpectEqual(p.logits, Name("masked gradient", s, 2));
  }
}

// Without weight on the teacher, the gradient is the cross-entropy's.
TEST_F(GpuDistillationTest, AlphaZeroIsCrossEntropy) {
  for (const Shape& s : kShapes) {
    Problem p = Make(s), plain = Make(s);
    Run(s, p, 2, 0, 0.25);
    gpu().CrossEntropy(
        {plain.logits.gpu(), plain.targets.gpu_flat(), plain.losses.gpu_flat(), s.vocab, 0.25},
        stream());
    stream().Synchronize();
    const auto found = p.logits.Download(), expected = plain.logits.Download();
    for (size_t i = 0; i < expected.size(); ++i) {
      ASSERT_NEAR(found[i], expected[i], 0.01 * std::abs(expected[i]) + 1e-30)
          << Name("element", s, 2) << " " << i;
    }
  }
}

// Exponentials far outside of fp32, and padding with the largest logits of all.
TEST_F(GpuDistillationTest, LargeLogitsAndLargerPadding) {
  const Shape s = {3, 41, 48, 48, 0};
  std::vector<double> values, taught;
  for (int64_t i = 0; i < s.rows; ++i) {
    for (int64_t j = 0; j < s.cols; ++j) {
      values.push_back(j < s.vocab ? (i == 1 ? -900.0 : 900.0) + 4 * (j % 5) : 2000.0);
      taught.push_back(j < s.vocab ? -512.0 - 2 * (j % 7) : 3000.0);
    }
  }
  Problem p = With(s, 4, Mirror::Of(s.rows, s.cols, DType::kBF16, values),
                   Mirror::Of(s.rows, s.cols, DType::kBF16, taught));
  Run(s, p, 2, 0.5, 1);
  ExpectParity(p.losses, "large loss", 1e-5);
  // fp32 holds differences of a thousand to 1e-4.
  ExpectParity(p.divergences, "large divergence", 1e-3);
  ExpectParity(p.logits, "large gradient");
  const auto gradient = p.logits.Download();
  for (int64_t i = 0; i < s.rows; ++i) {
    for (int64_t j = s.vocab; j < s.cols; ++j) ASSERT_EQ(gradient[i * s.cols + j], 0);
  }
}

}  // namespace
}  // namespace filigree

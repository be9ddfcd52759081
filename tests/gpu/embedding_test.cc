// Embedding on the GPU, and its gradient: frequent tokens, odd widths, bit-for-bit repeats.
#include <cmath>
#include <string>

#include "kernels/base/rng.h"
#include "tests/gpu/gpu_testing.h"

namespace filigree {
namespace {

struct Shape {
  int64_t tokens, seq_len, vocab, cols, gap;
};
// Fewer tokens than a chunk of the gradient's sums, as many as one, and many; the last is large.
constexpr Shape kShapes[] = {
    {1, 1, 1, 1, 0},         {7, 7, 5, 7, 2},       {32, 16, 9, 48, 0},
    {33, 11, 9, 48, 8},      {99, 33, 70, 48, 4},   {300, 100, 1000, 513, 0},
    {513, 171, 50, 2048, 0}, {64, 64, 31, 5461, 0}, {8193, 2731, 5000, 264, 8}};

std::string Name(const char* what, const Shape& s) {
  return std::string(what) + " of " + std::to_string(s.tokens) + " tokens of " +
         std::to_string(s.vocab) + ", " + std::to_string(s.cols) + " wide";
}

// kSkewed: squares of uniform numbers, so that low tokens are frequent, as in text.
enum class Draw { kSkewed, kOneToken, kCycle };

Mirror Tokens(const Shape& s, Draw draw) {
  std::vector<double> values(s.tokens);
  for (int64_t i = 0; i < s.tokens; ++i) {
    const double normal = std::abs(RandomNormal(1, RngStream("tokens"), i));
    const auto skewed = static_cast<int64_t>(normal * normal * normal * s.vocab / 30);
    values[i] = static_cast<double>(draw == Draw::kOneToken ? s.vocab - 1
                                    : draw == Draw::kCycle  ? i % s.vocab
                                                            : std::min(skewed, s.vocab - 1));
  }
  return Mirror::Of(1, s.tokens, DType::kI32, values);
}

class GpuEmbeddingTest : public GpuTest {};

TEST_F(GpuEmbeddingTest, ForwardIsExact) {
  for (const Shape& s : kShapes) {
    for (bool positional : {false, true}) {
      auto tokens = Tokens(s, Draw::kSkewed);
      auto table = Mirror::Integers(s.vocab, s.cols, DType::kBF16, 1, s.gap);
      auto positions = Mirror::Integers(s.seq_len + 3, s.cols, DType::kBF16, 2, s.gap);
      auto out = Mirror::Output(s.tokens, s.cols, DType::kBF16, s.gap);
      gpu().Embedding({tokens.gpu_flat(), table.gpu(), positional ? positions.gpu() : TensorView(),
                       out.gpu(), s.seq_len},
                      stream());
      cpu().Embedding({tokens.cpu_flat(), table.cpu(), positional ? positions.cpu() : TensorView(),
                       out.cpu(), s.seq_len},
                      cpu_stream());
      stream().Synchronize();
      ExpectEqual(out, Name("Embedding", s));
    }
  }
}

TEST_F(GpuEmbeddingTest, GradientOfIntegersIsExact) {
  for (const Shape& s : kShapes) {
    for (Draw draw : {Draw::kSkewed, Draw::kOneToken, Draw::kCycle}) {
      auto tokens = Tokens(s, draw);
      auto dout = Mirror::Integers(s.tokens, s.cols, DType::kBF16, 1, s.gap);
      auto dtable = Mirror::Integers(s.vocab, s.cols, DType::kF32, 2, s.gap);
      auto dpositions = Mirror::Integers(s.seq_len + 3, s.cols, DType::kF32, 3, s.gap);
      gpu().EmbeddingBackward(
          {tokens.gpu_flat(), dout.gpu(), dtable.gpu(), dpositions.gpu(), s.seq_len}, stream());
      cpu().EmbeddingBackward(
          {tokens.cpu_flat(), dout.cpu(), dtable.cpu(), dpositions.cpu(), s.seq_len}, cpu_stream());
      stream().Synchronize();
      ExpectEqual(dtable, Name("dtable", s));
      ExpectEqual(dpositions, Name("dpositions", s));
    }
  }
}

TEST_F(GpuEmbeddingTest, GradientInBfloat16AndWithoutPositions) {
  for (const Shape& s : kShapes) {
    auto tokens = Tokens(s, Draw::kSkewed);
    auto dout = Mirror::Random(s.tokens, s.cols, DType::kBF16, 1, 1, s.gap);
    auto dtable = Mirror::Random(s.vocab, s.cols, DType::kBF16, 2, 1, s.gap);
    gpu().EmbeddingBackward({tokens.gpu_flat(), dout.gpu(), dtable.gpu(), TensorView(), s.seq_len},
                            stream());
    cpu().EmbeddingBackward({tokens.cpu_flat(), dout.cpu(), dtable.cpu(), TensorView(), s.seq_len},
                            cpu_stream());
    stream().Synchronize();
    ExpectParity(dtable, Name("bf16 dtable", s), 1e-5);
  }
}

TEST_F(GpuEmbeddingTest, GradientRepeatsBitForBit) {
  const Shape s = {8193, 2731, 5000, 264, 0};
  std::vector<double> results[2];
  for (auto& result : results) {
    auto tokens = Tokens(s, Draw::kSkewed);
    auto dout = Mirror::Random(s.tokens, s.cols, DType::kBF16, 1);
    auto dtable = Mirror::Random(s.vocab, s.cols, DType::kF32, 2);
    auto dpositions = Mirror::Random(s.seq_len, s.cols, DType::kF32, 3);
    gpu().EmbeddingBackward(
        {tokens.gpu_flat(), dout.gpu(), dtable.gpu(), dpositions.gpu(), s.seq_len}, stream());
    stream().Synchronize();
    result = dtable.Download();
    const auto positions = dpositions.Download();
    result.insert(result.end(), positions.begin(), positions.end());
  }
  EXPECT_EQ(results[0], results[1]);
}

}  // namespace
}  // namespace filigree

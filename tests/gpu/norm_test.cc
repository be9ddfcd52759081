// RMSNorm and LayerNorm on the GPU, and their gradients.
#include <cmath>
#include <string>

#include "tests/gpu/gpu_testing.h"

namespace filigree {
namespace {

struct Shape {
  int64_t rows, cols, gap;
};
// Every width that kernels treat differently (in registers of a warp or a block, of any width), at
// odd counts of rows; the last but one is large, the last beyond what registers hold.
constexpr Shape kShapes[] = {{1, 1, 0},     {37, 7, 3},    {37, 48, 0},     {37, 48, 8},
                             {37, 48, 4},   {129, 513, 0}, {255, 768, 8},   {97, 2048, 0},
                             {97, 2048, 8}, {5, 2056, 0},  {19, 5461, 0},   {33, 4096, 0},
                             {33, 8192, 0}, {3, 16384, 0}, {4099, 1280, 0}, {3, 20480, 0}};

std::string Name(const char* what, const Shape& s) {
  return std::string(what) + " of " + std::to_string(s.rows) + " x " + std::to_string(s.cols) +
         " + " + std::to_string(s.gap);
}

// Values between 0.5 and 1.5.
Mirror Scales(int64_t count) {
  std::vector<double> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = 1 + 0.5 * std::sin(static_cast<double>(i));
  return Mirror::Of(1, count, DType::kF32, values);
}

Mirror Constant(int64_t count, double value) {
  return Mirror::Of(1, count, DType::kF32, std::vector<double>(count, value));
}

class GpuNormTest : public GpuTest {};

TEST_F(GpuNormTest, RmsNorm) {
  for (const Shape& s : kShapes) {
    auto x = Mirror::Random(s.rows, s.cols, DType::kBF16, 1, 3, s.gap);
    auto gain = Mirror::Random(1, s.cols, DType::kBF16, 2);
    auto y = Mirror::Output(s.rows, s.cols, DType::kBF16, s.gap);
    auto rstd = Mirror::Output(1, s.rows, DType::kF32);
    gpu().RmsNorm({x.gpu(), gain.gpu_flat(), y.gpu(), rstd.gpu_flat(), 1e-5}, stream());
    cpu().RmsNorm({x.cpu(), gain.cpu_flat(), y.cpu(), rstd.cpu_flat(), 1e-5}, cpu_stream());
    stream().Synchronize();
    ExpectParity(y, Name("RmsNorm", s));
    ExpectParity(rstd, Name("RmsNorm's rstd", s), 2e-6);
  }
}

TEST_F(GpuNormTest, LayerNorm) {
  for (const Shape& s : kShapes) {
    auto x = Mirror::Random(s.rows, s.cols, DType::kBF16, 1, 3, s.gap);
    auto gain = Mirror::Random(1, s.cols, DType::kBF16, 2);
    auto bias = Mirror::Random(1, s.cols, DType::kBF16, 3);
    auto y = Mirror::Output(s.rows, s.cols, DType::kBF16, s.gap);
    auto mean = Mirror::Output(1, s.rows, DType::kF32),
         rstd = Mirror::Output(1, s.rows, DType::kF32);
    gpu().LayerNorm({x.gpu(), gain.gpu_flat(), bias.gpu_flat(), y.gpu(), mean.gpu_flat(),
                     rstd.gpu_flat(), 1e-5},
                    stream());
    cpu().LayerNorm({x.cpu(), gain.cpu_flat(), bias.cpu_flat(), y.cpu(), mean.cpu_flat(),
                     rstd.cpu_flat(), 1e-5},
                    cpu_stream());
    stream().Synchronize();
    ExpectParity(y, Name("LayerNorm", s));
    // The mean of n numbers of size 3 is about 3 / sqrt(n), its rounding errors relative to 3.
    ExpectParity(mean, Name("LayerNorm's mean", s), 2e-7 * std::sqrt(s.cols) + 1e-6);
    ExpectParity(rstd, Name("LayerNorm's rstd", s), 2e-6);
  }
}

// A mean far from zero must not drown the deviations from it.
TEST_F(GpuNormTest, LayerNormOfAFarMean) {
  for (int64_t cols : {int64_t{513}, int64_t{2048}}) {
    std::vector<double> values(3 * cols);
    for (size_t i = 0; i < values.size(); ++i) values[i] = 512 + 4 * static_cast<double>(i % 3);
    auto x = Mirror::Of(3, cols, DType::kBF16, values);
    auto gain = Mirror::Random(1, cols, DType::kBF16, 2),
         bias = Mirror::Random(1, cols, DType::kBF16, 3);
    auto y = Mirror::Output(3, cols, DType::kBF16);
    auto mean = Mirror::Output(1, 3, DType::kF32), rstd = Mirror::Output(1, 3, DType::kF32);
    gpu().LayerNorm(
        {x.gpu(), gain.gpu_flat(), bias.gpu_flat(), y.gpu(), mean.gpu_flat(), rstd.gpu_flat()},
        stream());
    cpu().LayerNorm(
        {x.cpu(), gain.cpu_flat(), bias.cpu_flat(), y.cpu(), mean.cpu_flat(), rstd.cpu_flat()},
        cpu_stream());
    stream().Synchronize();
    ExpectParity(y, "LayerNorm of a far mean");
    ExpectParity(rstd, "its rstd");
  }
}

TEST_F(GpuNormTest, RmsNormBackward) {
  for (const Shape& s : kShapes) {
    for (DType grad : {DType::kF32, DType::kBF16}) {
      auto x = Mirror::Random(s.rows, s.cols, DType::kBF16, 1, 2, s.gap);
      auto dy = Mirror::Random(s.rows, s.cols, DType::kBF16, 2, 1, s.gap);
      auto gain = Mirror::Random(1, s.cols, DType::kBF16, 3);
      auto rstd = Scales(s.rows);
      auto dx = Mirror::Random(s.rows, s.cols, DType::kBF16, 4, 1, s.gap);
      auto dgain = Mirror::Random(1, s.cols, grad, 5);
      gpu().RmsNormBackward(
          {x.gpu(), dy.gpu(), gain.gpu_flat(), rstd.gpu_flat(), dx.gpu(), dgain.gpu_flat()},
          stream());
      cpu().RmsNormBackward(
          {x.cpu(), dy.cpu(), gain.cpu_flat(), rstd.cpu_flat(), dx.cpu(), dgain.cpu_flat()},
          cpu_stream());
      stream().Synchronize();
      ExpectParity(dx, Name("RmsNorm's dx", s));
      ExpectParity(dgain, Name("RmsNorm's dgain", s), 1e-5);
    }
  }
}

TEST_F(GpuNormTest, LayerNormBackward) {
  for (const Shape& s : kShapes) {
    for (DType grad : {DType::kF32, DType::kBF16}) {
      auto x = Mirror::Random(s.rows, s.cols, DType::kBF16, 1, 2, s.gap);
      auto dy = Mirror::Random(s.rows, s.cols, DType::kBF16, 2, 1, s.gap);
      auto gain = Mirror::Random(1, s.cols, DType::kBF16, 3);
      auto mean = Mirror::Random(1, s.rows, DType::kF32, 6), rstd = Scales(s.rows);
      auto dx = Mirror::Random(s.rows, s.cols, DType::kBF16, 4, 1, s.gap);
      auto dgain = Mirror::Random(1, s.cols, grad, 5), dbias = Mirror::Random(1, s.cols, grad, 7);
      gpu().LayerNormBackward({x.gpu(), dy.gpu(), gain.gpu_flat(), mean.gpu_flat(), rstd.gpu_flat(),
                               dx.gpu(), dgain.gpu_flat(), dbias.gpu_flat()},
                              stream());
      cpu().LayerNormBackward({x.cpu(), dy.cpu(), gain.cpu_flat(), mean.cpu_flat(), rstd.cpu_flat(),
                               dx.cpu(), dgain.cpu_flat(), dbias.cpu_flat()},
                              cpu_stream());
      stream().Synchronize();
      ExpectParity(dx, Name("LayerNorm's dx", s));
      ExpectParity(dgain, Name("LayerNorm's dgain", s), 1e-5);
      ExpectParity(dbias, Name("LayerNorm's dbias", s), 1e-5);
    }
  }
}

// Every row counts once: sums of integers over rows are exact.
TEST_F(GpuNormTest, GainGradientsOfIntegersAreExact) {
  for (const Shape& s : kShapes) {
    auto x = Mirror::Integers(s.rows, s.cols, DType::kBF16, 1, s.gap);
    auto dy = Mirror::Integers(s.rows, s.cols, DType::kBF16, 2, s.gap);
    auto gain = Mirror::Integers(1, s.cols, DType::kBF16, 3);
    auto mean = Constant(s.rows, 1), rstd = Constant(s.rows, 2);
    auto dx = Mirror::Integers(s.rows, s.cols, DType::kBF16, 4, s.gap);
    auto dgain = Mirror::Integers(1, s.cols, DType::kF32, 5);
    auto dbias = Mirror::Integers(1, s.cols, DType::kF32, 6);
    gpu().LayerNormBackward({x.gpu(), dy.gpu(), gain.gpu_flat(), mean.gpu_flat(), rstd.gpu_flat(),
                             dx.gpu(), dgain.gpu_flat(), dbias.gpu_flat()},
                            stream());
    cpu().LayerNormBackward({x.cpu(), dy.cpu(), gain.cpu_flat(), mean.cpu_flat(), rstd.cpu_flat(),
                             dx.cpu(), dgain.cpu_flat(), dbias.cpu_flat()},
                            cpu_stream());
    stream().Synchronize();
    ExpectEqual(dgain, Name("dgain", s));
    ExpectEqual(dbias, Name("dbias", s));
  }
}

// Gradients over NaN, and the sums of dx, which are those of what was stored, in the same pass.
TEST_F(GpuNormTest, GradientsOverwriteAndSumsOfInputGradients) {
  for (const Shape& s : kShapes) {
    for (bool added : {false, true}) {
      auto x = Mirror::Random(s.rows, s.cols, DType::kBF16, 1, 2, s.gap);
      auto dy = Mirror::Random(s.rows, s.cols, DType::kBF16, 2, 1, s.gap);
      auto gain = Mirror::Random(1, s.cols, DType::kBF16, 3);
      auto mean = Mirror::Random(1, s.rows, DType::kF32, 6), rstd = Scales(s.rows);
      auto dx = Mirror::Random(s.rows, s.cols, DType::kBF16, 4, 1, s.gap);
      auto dgain = Mirror::Output(1, s.cols, DType::kF32);
      auto dbias = Mirror::Output(1, s.cols, DType::kF32);
      const auto sums_before = [&] {
        return added ? Mirror::Random(1, s.cols, DType::kF32, 7)
                     : Mirror::Output(1, s.cols, DType::kF32);
      };
      auto sums = sums_before(), rms_sums = sums_before();
      gpu().LayerNormBackward(
          {x.gpu(), dy.gpu(), gain.gpu_flat(), mean.gpu_flat(), rstd.gpu_flat(), dx.gpu(),
           dgain.gpu_flat(), dbias.gpu_flat(), false, sums.gpu_flat(), added},
          stream());
      cpu().LayerNormBackward({x.cpu(), dy.cpu(), gain.cpu_flat(), mean.cpu_flat(), rstd.cpu_flat(),
                               dx.cpu(), dgain.cpu_flat(), dbias.cpu_flat(), false},
                              cpu_stream());
      stream().Synchronize();
      ExpectParity(dx, Name("dx beside its sums", s));
      ExpectParity(dgain, Name("overwritten dgain", s), 1e-5);
      ExpectParity(dbias, Name("overwritten dbias", s), 1e-5);
      ExpectColumnSums(sums, dx, s.rows, s.cols, added, Name("sums of LayerNorm's dx", s));
      auto rms_dgain = Mirror::Output(1, s.cols, DType::kF32);
      gpu().RmsNormBackward({x.gpu(), dy.gpu(), gain.gpu_flat(), rstd.gpu_flat(), dx.gpu(),
                             rms_dgain.gpu_flat(), false, rms_sums.gpu_flat(), added},
                            stream());
      cpu().RmsNormBackward({x.cpu(), dy.cpu(), gain.cpu_flat(), rstd.cpu_flat(), dx.cpu(),
                             rms_dgain.cpu_flat(), false},
                            cpu_stream());
      stream().Synchronize();
      ExpectParity(rms_dgain, Name("overwritten dgain of RmsNorm", s), 1e-5);
      ExpectColumnSums(rms_sums, dx, s.rows, s.cols, added, Name("sums of RmsNorm's dx", s));
    }
  }
}

TEST_F(GpuNormTest, GradientsRepeatBitForBit) {
  std::vector<double> results[2];
  for (auto& result : results) {
    auto x = Mirror::Random(1027, 768, DType::kBF16, 1),
         dy = Mirror::Random(1027, 768, DType::kBF16, 2);
    auto gain = Mirror::Random(1, 768, DType::kBF16, 3);
    auto mean = Mirror::Random(1, 1027, DType::kF32, 6), rstd = Scales(1027);
    auto dx = Mirror::Random(1027, 768, DType::kBF16, 4);
    auto dgain = Mirror::Random(1, 768, DType::kF32, 5),
         dbias = Mirror::Random(1, 768, DType::kF32, 7);
    gpu().LayerNormBackward({x.gpu(), dy.gpu(), gain.gpu_flat(), mean.gpu_flat(), rstd.gpu_flat(),
                             dx.gpu(), dgain.gpu_flat(), dbias.gpu_flat()},
                            stream());
    stream().Synchronize();
    for (const Mirror* part : {&dx, &dgain, &dbias}) {
      const auto values = part->Download();
      result.insert(result.end(), values.begin(), values.end());
    }
  }
  EXPECT_EQ(results[0], results[1]);
}

}  // namespace
}  // namespace filigree

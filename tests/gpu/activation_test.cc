// SwiGLU, GELU, their gradients and sums on the GPU: widths with and without 16-byte accesses,
// column slices, outputs over inputs.
#include <string>

#include "tests/gpu/gpu_testing.h"

namespace filigree {
namespace {

struct Shape {
  int64_t rows, cols, gap;
};
// Every width that kernels treat differently; odd counts of rows; the last is large.
constexpr Shape kShapes[] = {{1, 1, 0},     {5, 7, 3},      {33, 48, 0},   {33, 48, 8},
                             {33, 48, 4},   {17, 513, 0},   {65, 2048, 0}, {65, 2048, 8},
                             {7, 5461, 11}, {2051, 5632, 0}};

std::string Name(const char* what, const Shape& s) {
  return std::string(what) + " of " + std::to_string(s.rows) + " x " + std::to_string(s.cols) +
         " + " + std::to_string(s.gap);
}

class GpuActivationTest : public GpuTest {};

TEST_F(GpuActivationTest, SwiGlu) {
  for (const Shape& s : kShapes) {
    // gate and up side by side, as the feed-forward layer has them.
    auto both = Mirror::Random(s.rows, 2 * s.cols, DType::kBF16, 1, 3, s.gap);
    auto y = Mirror::Output(s.rows, s.cols, DType::kBF16, s.gap);
    gpu().SwiGlu({both.gpu().Cols(0, s.cols), both.gpu().Cols(s.cols, s.cols), y.gpu()}, stream());
    cpu().SwiGlu({both.cpu().Cols(0, s.cols), both.cpu().Cols(s.cols, s.cols), y.cpu()},
                 cpu_stream());
    stream().Synchronize();
    ExpectParity(y, Name("SwiGlu", s));
    gpu().SwiGlu({both.gpu().Cols(0, s.cols), both.gpu().Cols(s.cols, s.cols), y.gpu(), true},
                 stream());
    cpu().SwiGlu({both.cpu().Cols(0, s.cols), both.cpu().Cols(s.cols, s.cols), y.cpu(), true},
                 cpu_stream());
    stream().Synchronize();
    ExpectParity(y, Name("SwiGlu without its activation", s));
    ExpectEqual(both, Name("SwiGlu's input", s));
  }
}

TEST_F(GpuActivationTest, SwiGluBackwardApartAndOverItsInputs) {
  for (int i = 0; i < 2 * static_cast<int>(std::size(kShapes)); ++i) {
    const Shape& s = kShapes[i / 2];
    const bool linear = i % 2 == 1;
    auto both = Mirror::Random(s.rows, 2 * s.cols, DType::kBF16, 1, 3, s.gap);
    auto dy = Mirror::Random(s.rows, s.cols, DType::kBF16, 2, 1, s.gap);
    auto apart = Mirror::Output(s.rows, 2 * s.cols, DType::kBF16, s.gap);
    const auto run = [&](Backend& backend, Stream& on, TensorView in, TensorView d,
                         TensorView out) {
      backend.SwiGluBackward({in.Cols(0, s.cols), in.Cols(s.cols, s.cols), d, out.Cols(0, s.cols),
                              out.Cols(s.cols, s.cols), linear},
                             on);
    };
    run(gpu(), stream(), both.gpu(), dy.gpu(), apart.gpu());
    run(cpu(), cpu_stream(), both.cpu(), dy.cpu(), apart.cpu());
    stream().Synchronize();
    ExpectParity(apart, Name("SwiGluBackward", s));
    // The gate's gradient over dy, the other in its place beside, as a product leaves them.
    auto beside = Mirror::Random(s.rows, 2 * s.cols, DType::kBF16, 3, 1, s.gap);
    device().CopyAsync(beside.gpu().Cols(0, s.cols), dy.gpu(), stream());
    run(gpu(), stream(), both.gpu(), beside.gpu().Cols(0, s.cols), beside.gpu());
    stream().Synchronize();
    EXPECT_EQ(beside.Download(), apart.Download()) << Name("SwiGluBackward over dy", s);
    EXPECT_TRUE(beside.GapsAreIntact());
    run(gpu(), stream(), both.gpu(), dy.gpu(), both.gpu());
    stream().Synchronize();
    EXPECT_EQ(both.Download(), apart.Download()) << Name("SwiGluBackward in place", s);
    EXPECT_TRUE(both.GapsAreIntact());
  }
}

TEST_F(GpuActivationTest, SiluAloneApartAndInPlace) {
  for (const Shape& s : kShapes) {
    auto x = Mirror::Random(s.rows, s.cols, DType::kBF16, 1, 3, s.gap);
    auto dy = Mirror::Random(s.rows, s.cols, DType::kBF16, 2, 1, s.gap);
    auto y = Mirror::Output(s.rows, s.cols, DType::kBF16, s.gap);
    auto dx = Mirror::Output(s.rows, s.cols, DType::kBF16, s.gap);
    const auto run = [&](Backend& backend, Stream& on, TensorView in, TensorView out, TensorView d,
                         TensorView din) {
      backend.SwiGlu({.gate = in, .y = out}, on);
      backend.SwiGluBackward({.gate = in, .dy = d, .dgate = din}, on);
    };
    run(gpu(), stream(), x.gpu(), y.gpu(), dy.gpu(), dx.gpu());
    run(cpu(), cpu_stream(), x.cpu(), y.cpu(), dy.cpu(), dx.cpu());
    gpu().SwiGluBackward({.gate = x.gpu(), .dy = dy.gpu(), .dgate = dy.gpu()}, stream());
    stream().Synchronize();
    ExpectParity(y, Name("Silu", s));
    ExpectParity(dx, Name("SiluBackward", s));
    EXPECT_EQ(dy.Download(), dx.Download()) << Name("SiluBackward in place", s);
  }
}

TEST_F(GpuActivationTest, Gelu) {
  for (const Shape& s : kShapes) {
    auto x = Mirror::Random(s.rows, s.cols, DType::kBF16, 1, 3, s.gap);
    auto dy = Mirror::Random(s.rows, s.cols, DType::kBF16, 2, 1, s.gap);
    auto y = Mirror::Output(s.rows, s.cols, DType::kBF16, s.gap);
    auto dx = Mirror::Output(s.rows, s.cols, DType::kBF16, s.gap);
    gpu().Gelu({x.gpu(), y.gpu()}, stream());
    cpu().Gelu({x.cpu(), y.cpu()}, cpu_stream());
    gpu().GeluBackward({x.gpu(), dy.gpu(), dx.gpu()}, stream());
    cpu().GeluBackward({x.cpu(), dy.cpu(), dx.cpu()}, cpu_stream());
    gpu().GeluBackward({x.gpu(), dy.gpu(), dy.gpu()}, stream());
    stream().Synchronize();
    ExpectParity(y, Name("Gelu", s));
    ExpectParity(dx, Name("GeluBackward", s));
    EXPECT_EQ(dy.Download(), dx.Download()) << Name("GeluBackward in place", s);
    EXPECT_TRUE(dy.GapsAreIntact());
  }
}

TEST_F(GpuActivationTest, ExponentialsSaturate) {
  const std::vector<double> values = {200, -200, 1e4, -1e4, 89, -89, 0, -0.0};
  auto x = Mirror::Of(1, 8, DType::kBF16, values),
       one = Mirror::Of(1, 8, DType::kBF16, {1, 1, 1, 1, 1, 1, 1, 1});
  auto silu = Mirror::Output(1, 8, DType::kBF16), gelu = Mirror::Output(1, 8, DType::kBF16);
  auto dgate = Mirror::Output(1, 8, DType::kBF16), dup = Mirror::Output(1, 8, DType::kBF16);
  auto dx = Mirror::Output(1, 8, DType::kBF16);
  gpu().SwiGlu({x.gpu(), one.gpu(), silu.gpu()}, stream());
  gpu().Gelu({x.gpu(), gelu.gpu()}, stream());
  gpu().SwiGluBackward({x.gpu(), one.gpu(), one.gpu(), dgate.gpu(), dup.gpu()}, stream());
  gpu().GeluBackward({x.gpu(), one.gpu(), dx.gpu()}, stream());
  stream().Synchronize();
  // bf16 of max(x, 0), of its slope, and at zero one half.
  const auto in = x.Download();
  for (int i = 0; i < 8; ++i) {
    const double relu = in[i] > 0 ? in[i] : 0, slope = in[i] == 0 ? 0.5 : in[i] > 0;
    EXPECT_NEAR(silu.Download()[i], relu, 1e-30) << in[i];
    EXPECT_NEAR(gelu.Download()[i], relu, 1e-30) << in[i];
    EXPECT_NEAR(dup.Download()[i], relu, 1e-30) << in[i];
    EXPECT_NEAR(dgate.Download()[i], slope, 1e-30) << in[i];
    EXPECT_NEAR(dx.Download()[i], slope, 1e-30) << in[i];
  }
}

TEST_F(GpuActivationTest, AddIsExactAndMayOverwriteEitherInput) {
  for (const Shape& s : kShapes) {
    auto a = Mirror::Integers(s.rows, s.cols, DType::kBF16, 1, s.gap);
    auto b = Mirror::Integers(s.rows, s.cols, DType::kBF16, 2, s.gap);
    auto out = Mirror::Output(s.rows, s.cols, DType::kBF16, s.gap);
    for (TensorView to : {out.gpu(), a.gpu(), b.gpu()}) {
      gpu().Add({a.gpu(), b.gpu(), to}, stream());
    }
    for (TensorView to : {out.cpu(), a.cpu(), b.cpu()}) {
      cpu().Add({a.cpu(), b.cpu(), to}, cpu_stream());
    }
    stream().Synchronize();
    ExpectEqual(out, Name("Add", s));
    ExpectEqual(a, Name("Add over a", s));
    ExpectEqual(b, Name("Add over b", s));
  }
}

TEST_F(GpuActivationTest, NoRowsIsNoWork) {
  auto none = Mirror::Output(0, 8, DType::kBF16);
  gpu().SwiGlu({none.gpu(), none.gpu(), none.gpu()}, stream());
  gpu().Add({none.gpu(), none.gpu(), none.gpu()}, stream());
  stream().Synchronize();
}

}  // namespace
}  // namespace filigree

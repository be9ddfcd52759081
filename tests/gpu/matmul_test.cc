#include <sstream>

#include "tests/gpu/gpu_testing.h"

namespace filigree {
namespace {

struct Shape {
  int64_t m, n, k;
};

struct Case {
  Shape shape;
  bool transpose_a = false, transpose_b = false, accumulate = false, bias = false;
  DType out = DType::kBF16;
  int64_t gap = 0;
  double scale = 1;

  std::string Name() const {
    std::ostringstream text;
    text << shape.m << "x" << shape.n << "x" << shape.k << (transpose_a ? " a^T" : "")
         << (transpose_b ? " b^T" : "") << (accumulate ? " accumulate" : "")
         << (bias ? " bias" : "") << " to " << NameOf(out) << ", gap " << gap << ", scale "
         << scale;
    return text.str();
  }
};

enum class Epilogue { kNone, kResidual, kGelu, kGeluBackward, kSwiGluBackward, kSwiGlu };

class GpuMatMulTest : public GpuTest {
 protected:
  static void Run(const Case& c, Epilogue epilogue, bool integers) {
    const auto draw = [&](int64_t rows, int64_t cols, DType dtype, uint64_t seed, double scale) {
      return integers ? Mirror::Integers(rows, cols, dtype, seed, c.gap)
                      : Mirror::Random(rows, cols, dtype, seed, scale, c.gap);
    };
    const auto [m, n, k] = c.shape;
    const bool swiglu = epilogue == Epilogue::kSwiGlu;
    if (swiglu && n % 2 != 0) return;
    Mirror a = c.transpose_a ? draw(k, m, DType::kBF16, 1, 1) : draw(m, k, DType::kBF16, 1, 1);
    const double scale = 1 / std::sqrt(static_cast<double>(std::max<int64_t>(k, 1)));
    Mirror b =
        c.transpose_b ? draw(n, k, DType::kBF16, 2, scale) : draw(k, n, DType::kBF16, 2, scale);
    Mirror out = c.accumulate ? draw(m, n, c.out, 3, 1) : Mirror::Output(m, n, c.out, c.gap);
    Mirror bias =
        integers ? Mirror::Integers(1, n, DType::kBF16, 4) : Mirror::Random(1, n, DType::kBF16, 4);
    Mirror operand = draw(m, n, c.out, 5, 1);
    Mirror up = draw(m, n, c.out, 7, 1);
    Mirror beside = Mirror::Output(m, swiglu ? n / 2 : n, c.out, c.gap);
    const bool sums_output = epilogue != Epilogue::kNone && c.out == DType::kBF16;
    Mirror sums =
        c.accumulate ? Mirror::Random(1, n, DType::kF32, 6) : Mirror::Output(1, n, DType::kF32);
    const auto args = [&](bool gpu) {
      const auto view = [&](Mirror& mirror) { return gpu ? mirror.gpu() : mirror.cpu(); };
      MatMulArgs args = {.a = view(a),
                         .b = view(b),
                         .out = view(out),
                         .transpose_a = c.transpose_a,
                         .transpose_b = c.transpose_b,
                         .accumulate = c.accumulate,
                         .scale = c.scale};
      if (c.bias) args.bias = gpu ? bias.gpu_flat() : bias.cpu_flat();
      if (epilogue == Epilogue::kResidual) args.epilogue.residual = view(operand);
      if (epilogue == Epilogue::kGelu) args.epilogue.pre_activation = view(beside);
      if (epilogue == Epilogue::kGeluBackward) args.epilogue.gelu_input = view(operand);
      if (epilogue == Epilogue::kSwiGluBackward) {
        args.epilogue.swiglu = {view(operand), view(up), view(beside)};
      }
      if (swiglu) args.epilogue.swiglu_output = {view(beside)};
      if (gpu && sums_output) {
        args.epilogue.column_sums = sums.gpu_flat();
        args.epilogue.accumulate_sums = c.accumulate;
      }
      return args;
    };
    gpu().MatMul(args(true), stream());
    stream().Synchronize();
    cpu().MatMul(args(false), cpu_stream());
    if (integers) {
      ExpectEqual(out, c.Name());
    } else {
      ExpectParity(out, c.Name(), epilogue == Epilogue::kNone ? 1e-4 : 5e-4);
    }
    if (epilogue == Epilogue::kGelu) ExpectParity(beside, c.Name() + ", before gelu");
    if (epilogue == Epilogue::kSwiGluBackward) {
      ExpectParity(beside, c.Name() + ", gradient of up", 5e-4);
    }
    if (swiglu) ExpectParity(beside, c.Name() + ", SwiGLU", 2e-3);
    if (sums_output) ExpectColumnSums(sums, out, m, n, c.accumulate, c.Name() + ", column sums");
  }
};

// Sizes of models, a last token, a single row or column, and what no vector divides.
constexpr Shape kShapes[] = {{256, 512, 384}, {1, 64, 64}, {64, 1, 40},   {8, 8, 8},
                             {129, 72, 200},  {33, 17, 5}, {7, 257, 129}, {1000, 50, 3}};

// The products of a group of thin factors: a shared operand, operands and outputs that interleave
// by columns, and rows of others between the outputs, which keep their values.
TEST_F(GpuMatMulTest, BatchesAreProductsOneByOne) {
  struct Batch {
    int64_t count, m, n, k;
  };
  for (const auto [count, m, n, k] :
       {Batch{3, 200, 64, 128}, Batch{2, 1024, 256, 512}, Batch{3, 77, 8, 40}}) {
    for (const DType to : {DType::kBF16, DType::kF32}) {
      for (const bool accumulate : {false, true}) {
        const std::string what = std::to_string(count) + " of " + std::to_string(m) + "x" +
                                 std::to_string(n) + "x" + std::to_string(k);
        Mirror shared = Mirror::Integers(m, k, DType::kBF16, 1);
        Mirror weights = Mirror::Integers(count * (n + 8), k, DType::kBF16, 2);
        Mirror wide = Mirror::Integers(m, count * n, to, 3);
        Mirror dy = Mirror::Integers(m, count * k, DType::kBF16, 4);
        Mirror stacked = Mirror::Integers(count * (k + 8), n, to, 5);
        for (const bool on_gpu : {true, false}) {
          const auto view = [&](Mirror& mirror) { return on_gpu ? mirror.gpu() : mirror.cpu(); };
          Backend& backend = on_gpu ? static_cast<Backend&>(gpu()) : cpu();
          Stream& queue = on_gpu ? stream() : cpu_stream();
          backend.MatMul({.a = view(shared),
                          .b = view(weights).Rows(0, n),
                          .out = view(wide).Cols(0, n),
                          .transpose_b = true,
                          .accumulate = accumulate,
                          .batch = {.count = count, .a = 0, .b = (n + 8) * k, .out = n}},
                         queue);
          backend.MatMul({.a = view(dy).Cols(0, k),
                          .b = view(shared).Rows(0, m).Cols(0, std::min(n, k)),
                          .out = view(stacked).Rows(0, k).Cols(0, std::min(n, k)),
                          .transpose_a = true,
                          .accumulate = accumulate,
                          .batch = {.count = count, .a = k, .b = 0, .out = (k + 8) * n}},
                         queue);
          queue.Synchronize();
        }
        ExpectParity(wide, what + " side by side", 0);
        ExpectParity(stacked, what + " one under the other", 0);
      }
    }
  }
}

// Sums of integers up to 4 * 384 are exact in F32; in BF16 those beyond 256 would be rounded, once.
TEST_F(GpuMatMulTest, IntegersAreExactInF32) {
  for (const Shape& shape : kShapes) {
    for (int bits = 0; bits < 8; ++bits) {
      Run({.shape = shape,
           .transpose_a = (bits & 1) != 0,
           .transpose_b = (bits & 2) != 0,
           .accumulate = (bits & 4) != 0,
           .out = DType::kF32},
          Epilogue::kNone, /*integers=*/true);
    }
  }
}

TEST_F(GpuMatMulTest, EveryTransposeAndShapeInBF16) {
  for (const Shape& shape : kShapes) {
    for (int bits = 0; bits < 16; ++bits) {
      Run({.shape = shape,
           .transpose_a = (bits & 1) != 0,
           .transpose_b = (bits & 2) != 0,
           .accumulate = (bits & 4) != 0,
           .bias = (bits & 8) != 0},
          Epilogue::kNone, /*integers=*/false);
    }
  }
}

TEST_F(GpuMatMulTest, StridedViewsKeepTheirGaps) {
  for (const Shape& shape : kShapes) {
    for (int64_t gap : {8, 3}) {
      for (DType out : {DType::kBF16, DType::kF32}) {
        Run({.shape = shape, .transpose_b = true, .out = out, .gap = gap}, Epilogue::kNone, false);
        Run({.shape = shape, .transpose_a = true, .accumulate = true, .out = out, .gap = gap},
            Epilogue::kNone, false);
      }
    }
  }
}

TEST_F(GpuMatMulTest, EpiloguesFusedAndNot) {
  for (Epilogue epilogue :
       {Epilogue::kResidual, Epilogue::kGelu, Epilogue::kGeluBackward, Epilogue::kSwiGluBackward,
        Epilogue::kSwiGlu}) {
    for (const Shape& shape : kShapes) {
      for (bool bias : {false, true}) {
        for (int64_t gap : {0, 8, 3}) {
          Run({.shape = shape, .transpose_b = true, .bias = bias, .gap = gap}, epilogue, false);
        }
      }
    }
  }
  Run({.shape = {256, 512, 384}, .accumulate = true}, Epilogue::kResidual, false);
  Run({.shape = {256, 512, 384}, .accumulate = true}, Epilogue::kGeluBackward, false);
  Run({.shape = {256, 512, 384}, .accumulate = true}, Epilogue::kSwiGluBackward, false);
}

// 0.5 is exact and leaves bias and what is added to alone, so integers show whether it was applied
// once.
TEST_F(GpuMatMulTest, ScaleIsOfTheProductAlone) {
  for (const Shape& shape : kShapes) {
    Run({.shape = shape, .transpose_b = true, .accumulate = true, .out = DType::kF32, .scale = 0.5},
        Epilogue::kNone, true);
    Run({.shape = shape, .transpose_b = true, .bias = true, .scale = -2.75}, Epilogue::kNone,
        false);
  }
}

TEST_F(GpuMatMulTest, NoTermsLeaveBiasOrZero) {
  Run({.shape = {5, 24, 0}, .out = DType::kF32}, Epilogue::kNone, true);
  Run({.shape = {5, 24, 0}, .bias = true}, Epilogue::kNone, false);
}

TEST_F(GpuMatMulTest, LargeProducts) {
  Run({.shape = {2048, 1024, 4096}, .transpose_b = true}, Epilogue::kNone, false);
  Run({.shape = {1024, 2048, 4096}, .transpose_a = true, .accumulate = true, .out = DType::kF32},
      Epilogue::kNone, false);
}

TEST_F(GpuMatMulTest, RepeatsBitForBit) {
  Mirror a = Mirror::Random(512, 768, DType::kBF16, 1),
         b = Mirror::Random(1024, 768, DType::kBF16, 2);
  Mirror first = Mirror::Output(512, 1024, DType::kF32),
         second = Mirror::Output(512, 1024, DType::kF32);
  for (Mirror* out : {&first, &second}) {
    gpu().MatMul({.a = a.gpu(), .b = b.gpu(), .out = out->gpu(), .transpose_b = true}, stream());
  }
  stream().Synchronize();
  EXPECT_EQ(first.Download(), second.Download());
}

TEST_F(GpuMatMulTest, ColumnSums) {
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 1},
                                   {33, 7},
                                   {1000, 257},
                                   {16384, 768},
                                   {5, 4096},
                                   {4097, 8}}) {
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      for (int64_t gap : {0, 5}) {
        for (bool accumulate : {true, false}) {
          Mirror in = Mirror::Random(rows, cols, DType::kBF16, 1, 1, gap);
          Mirror out =
              accumulate ? Mirror::Random(1, cols, dtype, 2) : Mirror::Output(1, cols, dtype);
          gpu().ColumnSum({in.gpu(), out.gpu_flat(), accumulate}, stream());
          stream().Synchronize();
          cpu().ColumnSum({in.cpu(), out.cpu_flat(), accumulate}, cpu_stream());
          ExpectParity(out, std::to_string(rows) + " x " + std::to_string(cols), 1e-5);
        }
      }
    }
  }
}

}  // namespace
}  // namespace filigree

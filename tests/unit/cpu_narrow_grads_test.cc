// Gradients in BF16: every operation that adds to one adds what it computes in F32, rounded once.
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/unit/cpu_testing.h"

namespace filigree {
namespace {

constexpr int64_t kTokens = 37, kOut = 32, kIn = 48;

class CpuNarrowGradsTest : public CpuTest {
 protected:
  // Runs `add` on F32 gradients that are zero, and on BF16 ones that start from something.
  void Check(const std::string& name, int64_t rows, int64_t cols,
             const std::function<void(TensorView)>& add, bool adds = true) {
    SCOPED_TRACE(name);
    std::vector<float> computed(rows * cols, 0.0f);
    std::vector<BFloat16> narrow(rows * cols), expected(rows * cols);
    const auto start = TestMatrix<float>::Random(rows, cols, 77);
    for (int64_t i = 0; i < rows * cols; ++i) {
      narrow[i] = BFloat16(static_cast<float>(start(i / cols, i % cols)));
    }
    add(TensorView(computed.data(), DType::kF32, {rows, cols}));
    int64_t rounded = 0;
    for (int64_t i = 0; i < rows * cols; ++i) {
      const float sum = (adds ? static_cast<float>(narrow[i]) : 0.0f) + computed[i];
      expected[i] = BFloat16(sum);
      rounded += static_cast<float>(expected[i]) != sum;
    }
    EXPECT_GT(rounded, 0) << "nothing was rounded: this tests nothing";
    add(TensorView(narrow.data(), DType::kBF16, {rows, cols}));
    for (int64_t i = 0; i < rows * cols; ++i) {
      ASSERT_EQ(static_cast<float>(narrow[i]), static_cast<float>(expected[i])) << i;
    }
  }

  TestMatrix<float> x_ = TestMatrix<float>::Random(kTokens, kIn, 1);
  TestMatrix<float> dy_ = TestMatrix<float>::Random(kTokens, kOut, 2);
};

TEST_F(CpuNarrowGradsTest, Products) {
  for (const bool accumulate : {true, false}) {
    Check(
        "MatMul", kOut, kIn,
        [&](TensorView grads) {
          backend_.MatMul({.a = dy_.view(),
                           .b = x_.view(),
                           .out = grads,
                           .transpose_a = true,
                           .accumulate = accumulate},
                          *stream_);
        },
        accumulate);
  }
  Check("ColumnSum", 1, kOut, [&](TensorView grads) {
    backend_.ColumnSum({.in = dy_.view(), .out = grads.Flat()}, *stream_);
  });
}

TEST_F(CpuNarrowGradsTest, Norms) {
  auto dy = TestMatrix<float>::Random(kTokens, kIn, 3), gain = TestMatrix<float>::Random(1, kIn, 4);
  auto mean = TestMatrix<float>::Random(1, kTokens, 5);
  auto rstd = TestMatrix<float>::Constant(1, kTokens, 0.7);
  TestMatrix<float> dx(kTokens, kIn);
  Check("RmsNormBackward", 1, kIn, [&](TensorView grads) {
    backend_.RmsNormBackward({.x = x_.view(),
                              .dy = dy.view(),
                              .gain = gain.flat(),
                              .rstd = rstd.flat(),
                              .dx = dx.view(),
                              .dgain = grads.Flat()},
                             *stream_);
  });
  // Both gradients of a layer norm at once: gain in the first row, bias in the second.
  Check("LayerNormBackward", 2, kIn, [&](TensorView grads) {
    backend_.LayerNormBackward({.x = x_.view(),
                                .dy = dy.view(),
                                .gain = gain.flat(),
                                .mean = mean.flat(),
                                .rstd = rstd.flat(),
                                .dx = dx.view(),
                                .dgain = grads.Flat().Range(0, kIn),
                                .dbias = grads.Flat().Range(kIn, kIn)},
                               *stream_);
  });
}

TEST_F(CpuNarrowGradsTest, Embeddings) {
  constexpr int64_t kVocab = 11, kPositions = 5;
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < kTokens; ++i) tokens.push_back(static_cast<int32_t>(i * 7 % kVocab));
  Check("EmbeddingBackward", kVocab + kPositions, kIn, [&](TensorView grads) {
    backend_.EmbeddingBackward({.tokens = ConstTensorView(tokens.data(), DType::kI32, {kTokens}),
                                .dout = x_.view(),
                                .dtable = grads.Rows(0, kVocab),
                                .dpositions = grads.Rows(kVocab, kPositions),
                                .seq_len = kPositions},
                               *stream_);
  });
}

TEST_F(CpuNarrowGradsTest, StoredCells) {
  auto layout = SparseLayout::Blocked(kOut, kIn, 16, 16, {0, 2, 3}, {0, 2, 1});
  ASSERT_TRUE(layout.ok()) << layout.status().message();
  const auto weight = backend_.PrepareLayout(*layout);
  const int64_t stored = weight->layout().stored_count();
  Check("Sddmm", 1, stored, [&](TensorView grads) {
    backend_.Sddmm(
        {.weight = weight.get(), .dy = dy_.view(), .x = x_.view(), .dvalues = grads.Flat()},
        *stream_);
  });
  auto dense = TestMatrix<float>::Random(kOut, kIn, 6);
  for (const bool accumulate : {true, false}) {
    Check(
        "GatherStored", 1, stored,
        [&](TensorView grads) {
          backend_.GatherStored({.weight = weight.get(),
                                 .dense = dense.view(),
                                 .values = grads.Flat(),
                                 .accumulate = accumulate},
                                *stream_);
        },
        accumulate);
  }
}

// AdamW and the norm read what the BF16 gradient holds.
TEST_F(CpuNarrowGradsTest, AreReadAsTheyAre) {
  constexpr int64_t kCount = 20001;
  const auto random = TestMatrix<float>::Random(1, kCount, 7);
  std::vector<float> wide(kCount);
  std::vector<BFloat16> narrow(kCount);
  for (int64_t i = 0; i < kCount; ++i) {
    narrow[i] = BFloat16(static_cast<float>(random(0, i)));
    wide[i] = static_cast<float>(narrow[i]);
  }
  const auto result = [&](ConstTensorView grads) {
    auto w = TestMatrix<float>::Random(1, kCount, 8);
    TestMatrix<float> m(1, kCount), v(1, kCount);
    const float scale = 0.5f;
    double squares = 0;
    backend_.SumOfSquares({.in = grads, .out = TensorView(&squares, DType::kF64, {1})}, *stream_);
    backend_.AdamW({.values = w.flat(),
                    .master = w.flat(),
                    .grads = grads,
                    .m = m.flat(),
                    .v = v.flat(),
                    .scale = ConstTensorView(&scale, DType::kF32, {1}),
                    .lr = 1e-2},
                   *stream_);
    return std::pair(w.data(), squares);
  };
  EXPECT_EQ(result(ConstTensorView(narrow.data(), DType::kBF16, {kCount})),
            result(ConstTensorView(wide.data(), DType::kF32, {kCount})));
}

}  // namespace
}  // namespace filigree

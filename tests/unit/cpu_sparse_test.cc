#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "kernels/sparse/random_layout.h"
#include "tests/unit/cpu_testing.h"

namespace filigree {
namespace {

// One weight [out, in] in blocks, and a number of tokens.
struct Case {
  int64_t out, in;
  int block_out, block_in;
  double density;
  int64_t tokens;
};
const Case kCases[] = {
    {64, 96, 32, 32, 0.5, 40},                                // whole blocks
    {100, 70, 32, 32, 0.6, 133},                              // edges
    {100, 70, 16, 16, 0.25, 300},                             // more than two chunks of tokens
    {130, 129, 64, 64, 0.5, 17},                              // edges of two rows and of one column
    {130, 200, 128, 128, 1.0, 9}, {96, 64, 48, 16, 0.5, 31},  // rectangles
    {23, 31, 3, 5, 0.4, 12},      {23, 31, 1, 1, 0.2, 12},
    {7, 9, 32, 32, 1.0, 5},    // one block, larger than the weight
    {64, 64, 32, 32, 0.0, 6},  // none
    {64, 64, 16, 16, 0.1, 1},  // one token; empty rows and columns
    {64, 64, 16, 16, 0.5, 0},  // no token
};

std::string NameOf(const Case& c) {
  return std::to_string(c.out) + " x " + std::to_string(c.in) + " in " +
         std::to_string(c.block_out) + " x " + std::to_string(c.block_in) + ", " +
         std::to_string(c.tokens) + " tokens";
}

// A weight's layout, stored values, and the same as a dense matrix built from the logical indices.
// Edge padding holds NaN, which must reach no result.
template <typename T>
struct Weight {
  explicit Weight(CpuBackend& backend, SparseLayout layout)
      : prepared(backend.PrepareLayout(layout)),
        cells(layout.LogicalIndices()),
        values(1, layout.stored_count()),
        dense(layout.out(), layout.in()) {
    const auto numbers = TestMatrix<T>::Random(1, layout.stored_count(), 77);
    for (size_t slot = 0; slot < cells.size(); ++slot) {
      values(0, slot) = cells[slot] < 0 ? NAN : numbers(0, slot);
      if (cells[slot] >= 0)
        dense(cells[slot] / layout.in(), cells[slot] % layout.in()) = values(0, slot);
    }
  }
  const PreparedLayout* layout() const { return prepared.get(); }

  std::unique_ptr<PreparedLayout> prepared;
  std::vector<int64_t> cells;
  TestMatrix<T> values, dense;
};

template <typename T>
Weight<T> WeightOf(CpuBackend& backend, const Case& c) {
  return Weight<T>(
      backend, RandomUniformBlocks(c.out, c.in, c.block_out, c.block_in, c.density, 3, "weight"));
}

template <typename T>
class CpuSparseTest : public TypedCpuTest<T> {};
TYPED_TEST_SUITE(CpuSparseTest, FloatTypes);

TYPED_TEST(CpuSparseTest, Spmm) {
  using T = TypeParam;
  for (const Case& c : kCases) {
    SCOPED_TRACE(NameOf(c));
    auto weight = WeightOf<T>(this->backend_, c);
    auto x = TestMatrix<T>::Random(c.tokens, c.in, 1, 3), bias = TestMatrix<T>::Random(1, c.out, 2);
    const auto &cx = x, &cbias = bias, &w = weight.dense;
    for (bool biased : {false, true}) {
      auto y = TestMatrix<T>::Constant(c.tokens, c.out, NAN, 2);
      this->backend_.Spmm({weight.layout(), weight.values.flat(), x.view(), y.view(),
                           biased ? bias.flat() : TensorView()},
                          *this->stream_);
      ExpectNear(y, [&](int64_t t, int64_t i) {
        double sum = biased ? cbias(0, i) : 0.0;
        for (int64_t j = 0; j < c.in; ++j) sum += cx(t, j) * w(i, j);
        return sum;
      });
    }
  }
}

TYPED_TEST(CpuSparseTest, SpmmTransposed) {
  using T = TypeParam;
  for (const Case& c : kCases) {
    SCOPED_TRACE(NameOf(c));
    auto weight = WeightOf<T>(this->backend_, c);
    auto dy = TestMatrix<T>::Random(c.tokens, c.out, 1, 3);
    const auto &cdy = dy, &w = weight.dense;
    for (bool accumulate : {false, true}) {
      auto dx = accumulate ? TestMatrix<T>::Random(c.tokens, c.in, 2, 1)
                           : TestMatrix<T>::Constant(c.tokens, c.in, NAN, 1);
      const auto before = dx;
      this->backend_.SpmmTransposed(
          {weight.layout(), weight.values.flat(), dy.view(), dx.view(), accumulate},
          *this->stream_);
      ExpectNear(dx, [&](int64_t t, int64_t j) {
        double sum = accumulate ? before(t, j) : 0.0;
        for (int64_t i = 0; i < c.out; ++i) sum += cdy(t, i) * w(i, j);
        return sum;
      });
    }
  }
}

TYPED_TEST(CpuSparseTest, Epilogues) {
  using T = TypeParam;
  const Case c = {40, 50, 16, 16, 0.5, 33};
  auto weight = WeightOf<T>(this->backend_, c);
  auto x = TestMatrix<T>::Random(c.tokens, c.in, 1), dy = TestMatrix<T>::Random(c.tokens, c.out, 2);
  auto residual = TestMatrix<T>::Random(c.tokens, c.out, 3);
  auto gelu_input = TestMatrix<T>::Random(c.tokens, c.in, 4);
  TestMatrix<T> y(c.tokens, c.out), product(c.tokens, c.out), expected(c.tokens, c.out);
  TestMatrix<T> pre(c.tokens, c.out), dx(c.tokens, c.in), dproduct(c.tokens, c.in);
  auto sums = TestMatrix<T>::Constant(1, c.in, NAN), expected_sums = TestMatrix<T>(1, c.in);
  Stream& stream = *this->stream_;
  this->backend_.Spmm({weight.layout(), weight.values.flat(), x.view(), product.view()}, stream);
  this->backend_.Spmm({.weight = weight.layout(),
                       .values = weight.values.flat(),
                       .x = x.view(),
                       .y = y.view(),
                       .epilogue = {.residual = residual.view(), .pre_activation = pre.view()}},
                      stream);
  this->backend_.Add({product.view(), residual.view(), expected.view()}, stream);
  EXPECT_EQ(pre.data(), expected.data());
  this->backend_.Gelu({expected.view(), product.view()}, stream);
  EXPECT_EQ(y.data(), product.data());

  this->backend_.SpmmTransposed(
      {weight.layout(), weight.values.flat(), dy.view(), dproduct.view(), false}, stream);
  this->backend_.SpmmTransposed({.weight = weight.layout(),
                                 .values = weight.values.flat(),
                                 .dy = dy.view(),
                                 .dx = dx.view(),
                                 .epilogue = {.gelu_input = gelu_input.view(),
                                              .column_sums = sums.flat(),
                                              .accumulate_sums = false}},
                                stream);
  this->backend_.GeluBackward({gelu_input.view(), dproduct.view(), dproduct.view()}, stream);
  EXPECT_EQ(dx.data(), dproduct.data());
  this->backend_.ColumnSum({dx.view(), expected_sums.flat()}, stream);
  EXPECT_EQ(sums.data(), expected_sums.data());
}

TYPED_TEST(CpuSparseTest, SwiGluOfTheOutput) {
  using T = TypeParam;
  const Case c = {40, 50, 16, 16, 0.5, 33};
  auto weight = WeightOf<T>(this->backend_, c);
  auto x = TestMatrix<T>::Random(c.tokens, c.in, 1), bias = TestMatrix<T>::Random(1, c.out, 2);
  auto inner = TestMatrix<T>::Random(c.tokens, 6, 3), factor = TestMatrix<T>::Random(c.out, 6, 4);
  const ConstTensorView thin = factor.view();
  Stream& stream = *this->stream_;
  for (const bool factors : {false, true}) {
    TestMatrix<T> product(c.tokens, c.out), expected(c.tokens, c.out / 2);
    auto y = TestMatrix<T>::Constant(c.tokens, c.out, NAN, 1);
    auto hidden = TestMatrix<T>::Constant(c.tokens, c.out / 2, NAN, 2);
    SpmmArgs args = {.weight = weight.layout(),
                     .values = weight.values.flat(),
                     .x = x.view(),
                     .y = product.view(),
                     .bias = bias.flat()};
    if (factors) args.low_rank = {inner.view(), {&thin, 1}};
    this->backend_.Spmm(args, stream);
    this->backend_.SwiGlu({product.view().Cols(0, c.out / 2),
                           product.view().Cols(c.out / 2, c.out / 2), expected.view()},
                          stream);
    args.y = y.view();
    args.epilogue = {.swiglu_output = {hidden.view()}};
    this->backend_.Spmm(args, stream);
    const auto &cproduct = product, &cexpected = expected;
    ExpectNear(
        y, [&](int64_t t, int64_t j) { return cproduct(t, j); }, 0.0);
    ExpectNear(
        hidden, [&](int64_t t, int64_t j) { return cexpected(t, j); }, 0.0);
  }
}

TYPED_TEST(CpuSparseTest, SwiGluGradients) {
  using T = TypeParam;
  const Case c = {40, 50, 16, 16, 0.5, 33};
  auto weight = WeightOf<T>(this->backend_, c);
  auto dy = TestMatrix<T>::Random(c.tokens, c.out, 2);
  auto gate = TestMatrix<T>::Random(c.tokens, c.in, 3, 1);
  auto up = TestMatrix<T>::Random(c.tokens, c.in, 4);
  Stream& stream = *this->stream_;
  for (const bool accumulate : {false, true}) {
    auto start = TestMatrix<T>::Random(c.tokens, c.in, 5, 2);
    auto dgate = start, dproduct = start;
    auto dup = TestMatrix<T>::Constant(c.tokens, c.in, NAN, 1), expected_dup = dup;
    this->backend_.SpmmTransposed({.weight = weight.layout(),
                                   .values = weight.values.flat(),
                                   .dy = dy.view(),
                                   .dx = dgate.view(),
                                   .accumulate = accumulate,
                                   .epilogue = {.swiglu = {gate.view(), up.view(), dup.view()}}},
                                  stream);
    this->backend_.SpmmTransposed(
        {weight.layout(), weight.values.flat(), dy.view(), dproduct.view(), accumulate}, stream);
    // In place, as the product's own pass over it is.
    this->backend_.SwiGluBackward(
        {gate.view(), up.view(), dproduct.view(), dproduct.view(), expected_dup.view()}, stream);
    const auto &cdgate = dproduct, &cdup = expected_dup;
    ExpectNear(
        dgate, [&](int64_t t, int64_t j) { return cdgate(t, j); }, 0.0);
    ExpectNear(
        dup, [&](int64_t t, int64_t j) { return cdup(t, j); }, 0.0);
  }
}

TYPED_TEST(CpuSparseTest, SddmmAddsAndLeavesPaddingZero) {
  using T = TypeParam;
  for (const Case& c : kCases) {
    SCOPED_TRACE(NameOf(c));
    auto weight = WeightOf<T>(this->backend_, c);
    auto dy = TestMatrix<T>::Random(c.tokens, c.out, 1, 3);
    auto x = TestMatrix<T>::Random(c.tokens, c.in, 2, 2);
    const auto &cdy = dy, &cx = x;
    TestMatrix<T> dvalues(1, weight.cells.size());
    // Real cells start from one, padding from zero.
    dvalues.Fill([&](int64_t, int64_t slot) { return weight.cells[slot] < 0 ? 0.0 : 1.0; });
    this->backend_.Sddmm({weight.layout(), dy.view(), x.view(), dvalues.flat()}, *this->stream_);
    ExpectNear(
        dvalues,
        [&](int64_t, int64_t slot) {
          if (weight.cells[slot] < 0) return 0.0;
          double sum = 1.0;
          for (int64_t t = 0; t < c.tokens; ++t) {
            sum += cdy(t, weight.cells[slot] / c.in) * cx(t, weight.cells[slot] % c.in);
          }
          return sum;
        },
        4.0);
    for (size_t slot = 0; slot < weight.cells.size(); ++slot) {
      if (weight.cells[slot] >= 0) continue;
      ASSERT_EQ(dvalues(0, slot), T(0)) << "padding slot " << slot;
    }
    TestMatrix<T> added(1, weight.cells.size());
    auto overwritten = TestMatrix<T>::Constant(1, weight.cells.size(), NAN);
    this->backend_.Sddmm({weight.layout(), dy.view(), x.view(), added.flat()}, *this->stream_);
    this->backend_.Sddmm({weight.layout(), dy.view(), x.view(), overwritten.flat(), false},
                         *this->stream_);
    EXPECT_EQ(overwritten.data(), added.data());
  }
}

TYPED_TEST(CpuSparseTest, ProductsDoNotDependOnThreads) {
  using T = TypeParam;
  const Case c = {100, 70, 16, 16, 0.5, 301};
  auto weight = WeightOf<T>(this->backend_, c);
  auto x = TestMatrix<T>::Random(c.tokens, c.in, 1), dy = TestMatrix<T>::Random(c.tokens, c.out, 2);
  std::vector<std::vector<T>> results[3];
  for (int threads : {1, 2, 3}) {
    SetCpuThreads(threads);
    TestMatrix<T> y(c.tokens, c.out), dx(c.tokens, c.in), dvalues(1, weight.cells.size());
    this->backend_.Spmm({weight.layout(), weight.values.flat(), x.view(), y.view(), {}},
                        *this->stream_);
    this->backend_.SpmmTransposed({weight.layout(), weight.values.flat(), dy.view(), dx.view()},
                                  *this->stream_);
    this->backend_.Sddmm({weight.layout(), dy.view(), x.view(), dvalues.flat()}, *this->stream_);
    results[threads - 1] = {y.data(), dx.data(), dvalues.data()};
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_EQ(results[0], results[2]);
}

TEST_F(CpuTest, SparseGradientsAgreeWithDifferences) {
  const Case c = {11, 13, 4, 6, 0.5, 6};
  Weight<double> weight = WeightOf<double>(backend_, c);
  for (size_t slot = 0; slot < weight.cells.size(); ++slot) {
    if (weight.cells[slot] < 0) weight.values(0, slot) = 0;
  }
  auto x = TestMatrix<double>::Random(c.tokens, c.in, 1);
  auto dy = TestMatrix<double>::Random(c.tokens, c.out, 2);
  TestMatrix<double> y(c.tokens, c.out), dx(c.tokens, c.in), dvalues(1, weight.cells.size());
  backend_.SpmmTransposed({weight.layout(), weight.values.flat(), dy.view(), dx.view()}, *stream_);
  backend_.Sddmm({weight.layout(), dy.view(), x.view(), dvalues.flat()}, *stream_);
  const auto loss = [&] {
    backend_.Spmm({weight.layout(), weight.values.flat(), x.view(), y.view(), {}}, *stream_);
    return WeightedSum(y, dy);
  };
  ExpectIsGradient(loss, x, dx, "dx");
  ExpectIsGradient(loss, weight.values, dvalues, "dvalues");
}

TYPED_TEST(CpuSparseTest, ScatterAndGatherEveryKind) {
  using T = TypeParam;
  const SparseLayout layouts[] = {
      SparseLayout::Dense(19, 24),
      SparseLayout::Dense(19, 21, 24),
      RandomUnstructured(19, 24, 0.3, 1, "u"),
      RandomUniformBlocks(19, 24, 4, 7, 0.4, 2, "b"),
      RandomBalancedBlocks(190, 240, 32, 32, 0.25, 2, "b"),
      SparseLayout::NM(1, 8, 1, 4, {3, 4}).value(),
  };
  for (const SparseLayout& layout : layouts) {
    SCOPED_TRACE(filigree::NameOf(layout.kind()));
    Weight<T> weight(this->backend_, layout);
    auto dense = TestMatrix<T>::Constant(layout.out(), layout.in(), NAN, 3);
    this->backend_.ScatterStored({weight.layout(), weight.values.flat(), dense.view()},
                                 *this->stream_);
    const auto& want = weight.dense;
    ExpectNear(
        dense, [&](int64_t i, int64_t j) { return want(i, j); }, 0.0);

    auto gathered = TestMatrix<T>::Constant(1, layout.stored_count(), NAN);
    this->backend_.GatherStored({weight.layout(), dense.view(), gathered.flat()}, *this->stream_);
    const auto stored = [&](int64_t slot) {
      return weight.cells[slot] < 0 ? 0.0 : static_cast<double>(weight.values(0, slot));
    };
    ExpectNear(
        gathered, [&](int64_t, int64_t slot) { return stored(slot); }, 0.0);
    this->backend_.GatherStored({weight.layout(), dense.view(), gathered.flat(), true},
                                *this->stream_);
    ExpectNear(gathered, [&](int64_t, int64_t slot) { return 2 * stored(slot); });
  }
}

TEST_F(CpuTest, PreparedLayoutCountsItsBytes) {
  const SparseLayout layout = RandomUniformBlocks(64, 64, 16, 16, 0.5, 1, "w");
  // 5 offsets and 8 columns; 5 offsets, 8 rows and 8 slots.
  EXPECT_EQ(backend_.PrepareLayout(layout)->bytes(), 5u * 8 + 8 * 4 + 5 * 8 + 8 * 4 + 8 * 8);
}

TEST_F(CpuTest, ProductsRefuseOtherKinds) {
  const auto dense = backend_.PrepareLayout(SparseLayout::Dense(2, 2));
  TestMatrix<float> values(1, 4), x(1, 2), y(1, 2);
  EXPECT_EXIT(
      backend_.Spmm({dense.get(), values.flat(), x.view(), y.view(), TensorView()}, *stream_),
      ::testing::ExitedWithCode(1), "need a blocked layout, not dense");
}

// Slots are of 32 bits.
TEST(MapStoredTest, LayoutsOfMoreCellsThan32BitsCountAreNotMapped) {
  CpuDevice device;
  CpuBackend backend(device);
  const auto stream = device.NewStream();
  const auto large = backend.PrepareLayout(SparseLayout::Dense(50000, 50000));
  const auto small = backend.PrepareLayout(SparseLayout::Dense(1, 1));
  std::vector<int32_t> first = {0}, slots = {0};
  const TensorView index(first.data(), DType::kI32, {1});
  EXPECT_DEATH(backend.MapStored({.from = large.get(),
                                  .to = small.get(),
                                  .rows = index,
                                  .columns = index,
                                  .slots = TensorView(slots.data(), DType::kI32, {1})},
                                 *stream),
               "2500000000");
}

}  // namespace
}  // namespace filigree

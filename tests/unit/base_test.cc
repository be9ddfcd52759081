#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/base/rng.h"
#include "kernels/base/status.h"
#include "kernels/base/tensor_view.h"

namespace filigree {
namespace {

TEST(CheckTest, PrintsRankStepExpressionAndContext) {
  EXPECT_EXIT(
      {
        SetFatalRank(3, "node7");
        SetFatalStep(12);
        CHECK(1 + 1 == 3) << "arithmetic holds";
      },
      ::testing::ExitedWithCode(1),
      "rank 3 on node7, step 12, .*base_test.cc:[0-9]+: 1 \\+ 1 == 3 arithmetic holds");
}

TEST(StatusTest, ExitCodesFollowTheContract) {
  EXPECT_EQ(OkStatus().exit_code(), 0);
  EXPECT_EQ(MachineError("m").exit_code(), 1);
  EXPECT_EQ(InvalidInput("i").exit_code(), 2);
  EXPECT_EQ(Interrupted("s").exit_code(), 143);
}

TEST(BFloat16Test, RoundsToNearestEvenAndKeepsNaN) {
  EXPECT_EQ(BFloat16(1.0f).bits, 0x3f80);
  EXPECT_EQ(BFloat16(1.00390625f).bits, 0x3f80);  // half way, to even
  EXPECT_EQ(BFloat16(1.01171875f).bits, 0x3f82);  // half way, to even
  EXPECT_EQ(static_cast<float>(BFloat16(-2.5f)), -2.5f);
  EXPECT_TRUE(std::isnan(static_cast<float>(BFloat16(std::nanf("")))));
  EXPECT_TRUE(std::isinf(static_cast<float>(BFloat16(3.4e38f))));
}

// The known answers of the Random123 distribution for philox4x32-10.
TEST(RngTest, PhiloxKnownAnswers) {
  using ::testing::ElementsAre;
  EXPECT_THAT(Philox4x32(0, 0, 0), ElementsAre(0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u));
  const uint64_t ones = ~0ull;
  EXPECT_THAT(Philox4x32(ones, ones, ones),
              ElementsAre(0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu));
  EXPECT_THAT(Philox4x32(0x299f31d0a4093822ull, 0x0370734413198a2eull, 0x85a308d3243f6a88ull),
              ElementsAre(0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u));
}

TEST(RngTest, NormalHasUnitVariance) {
  double sum = 0, squares = 0;
  const int n = 20000;
  for (int i = 0; i < n; ++i) {
    const double x = RandomNormal(7, RngStream("test"), i);
    sum += x;
    squares += x * x;
  }
  EXPECT_NEAR(sum / n, 0.0, 0.03);
  EXPECT_NEAR(squares / n, 1.0, 0.03);
}

TEST(RngTest, PermutationIsABijectionAtEverySize) {
  for (uint64_t size : {1, 2, 3, 5, 64, 100, 1023, 4097}) {
    RandomPermutation permutation(11, RngStream("perm"), size);
    std::set<uint64_t> seen;
    for (uint64_t i = 0; i < size; ++i) seen.insert(permutation(i));
    EXPECT_EQ(seen.size(), size);
    EXPECT_EQ(*seen.rbegin(), size - 1);
  }
}

TEST(TensorViewTest, ColumnSliceKeepsTheRowStride) {
  std::vector<float> data(12);
  for (int i = 0; i < 12; ++i) data[i] = static_cast<float>(i);
  TensorView view(data.data(), DType::kF32, {3, 4});
  TensorView slice = view.Cols(1, 2);
  EXPECT_EQ(slice.row_stride(), 4);
  EXPECT_FALSE(slice.contiguous());
  EXPECT_EQ(slice.Rows(2, 1).As<float>()[0], 9.0f);
  ConstTensorView constant = slice;
  EXPECT_EQ(constant.cols(), 2);
  EXPECT_EQ(view.Range(5, 3).As<float>()[0], 5.0f);
}

}  // namespace
}  // namespace filigree

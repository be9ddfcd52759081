// The topology engine's choices: selection of the highest, and what criteria score.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string_view>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_device.h"
#include "kernels/sparse/unit_layout.h"
#include "trainer/topology/criterion.h"
#include "trainer/topology/update.h"

namespace filigree {
namespace {

// -------------------------------------------------------------------------------------- selection

// Units of which some may be chosen (mark 1).
struct TestPool {
  uint64_t stream = 0;
  std::vector<float> scores;
  std::vector<uint8_t> marks;
};

// 1 for what is chosen.
std::vector<std::vector<uint8_t>> SelectHighest(std::vector<TestPool> pools, int64_t count) {
  CpuDevice device;
  CpuBackend backend(device);
  const auto stream = device.NewStream();
  std::vector<SelectionPool> views;
  for (TestPool& pool : pools) {
    const auto units = static_cast<int64_t>(pool.marks.size());
    views.push_back({.scores = ConstTensorView(pool.scores.data(), DType::kF32, {units}),
                     .marks = TensorView(pool.marks.data(), DType::kU8, {units}),
                     .stream = pool.stream});
  }
  std::vector<int64_t> counts(pools.size());
  backend.SelectHighest({.pools = views,
                         .count = count,
                         .seed = 1,
                         .chosen_counts = TensorView(counts.data(), DType::kI64,
                                                     {static_cast<int64_t>(counts.size())})},
                        *stream);
  std::vector<std::vector<uint8_t>> marks;
  for (size_t i = 0; i < pools.size(); ++i) {
    EXPECT_EQ(std::count(pools[i].marks.begin(), pools[i].marks.end(), 1), counts[i]);
    marks.push_back(pools[i].marks);
  }
  return marks;
}

TEST(SelectionTest, ExactCountsWithTiesAndNan) {
  std::vector<float> scores(1000, 1.0f);
  for (int i = 0; i < 100; ++i) scores[i] = 2.0f;
  for (int i = 900; i < 1000; ++i) scores[i] = std::nanf("");
  const TestPool pool = {7, scores, std::vector<uint8_t>(1000, 1)};
  for (const int64_t count : {0, 1, 50, 100, 101, 500, 900, 950, 1000, 2000}) {
    const auto chosen = SelectHighest({pool}, count).front();
    EXPECT_EQ(std::count(chosen.begin(), chosen.end(), 1), std::min<int64_t>(count, 1000));
    EXPECT_EQ(std::count(chosen.begin(), chosen.begin() + 100, 1), std::min<int64_t>(count, 100));
    EXPECT_EQ(std::count(chosen.begin() + 900, chosen.end(), 1),
              std::clamp<int64_t>(count - 900, 0, 100));
  }
  // Ties favour no end of the weight, and change with the event.
  const auto a = SelectHighest({pool}, 500).front();
  TestPool later = pool;
  later.stream = 8;
  EXPECT_NE(a, SelectHighest({later}, 500).front());
  EXPECT_NEAR(static_cast<double>(std::count(a.begin() + 100, a.begin() + 500, 1)), 200, 50);
  EXPECT_EQ(a, SelectHighest({pool}, 500).front());
}

TEST(SelectionTest, NegativeScoresAndSeveralPools) {
  const auto chosen =
      SelectHighest({{1, {-1, -2, 3}, {1, 1, 1}}, {2, {0, -0.5f, 5}, {1, 1, 0}}}, 3);
  EXPECT_EQ(chosen[0], (std::vector<uint8_t>{0, 0, 1}));
  EXPECT_EQ(chosen[1], (std::vector<uint8_t>{1, 1, 0}));
}

// --------------------------------------------------------------------------------------- criteria

class CriterionTest : public ::testing::Test {
 protected:
  CriterionTest() {
    parameter_.name = "layers.0.mlp.up.weight";
    parameter_.shape = {2, 3};
    parameter_.layout = SparseLayout::Unstructured(2, 3, {0, 2, 3}, {0, 2, 1}).value();
  }
  static ConstTensorView View(const std::vector<float>& array) {
    return ConstTensorView(array.data(), DType::kF32, {static_cast<int64_t>(array.size())});
  }
  ConstTensorView Dense(const std::vector<float>& array) const {
    return View(array).Reshape({parameter_.shape[0], parameter_.shape[1]});
  }
  // Units that are not stored get none.
  std::vector<float> Score(const char* name) {
    const auto prepared = backend_.PrepareLayout(parameter_.layout);
    std::vector<float> scores(static_cast<size_t>(UnitCount(parameter_.layout)), 0.0f);
    const TensorView view(scores.data(), DType::kF32, {static_cast<int64_t>(scores.size())});
    const ConstTensorView made = ScoreStored(*FindCriterion(name),
                                             {.parameter = &parameter_,
                                              .seed = 3,
                                              .values = View(values_),
                                              .grads = Dense(grads_),
                                              .hessian_grads = Dense(hessian_),
                                              .input_squares = squares_},
                                             *prepared, view, backend_, *stream_);
    EXPECT_EQ(made.empty(), std::string_view(name) == "random");
    return scores;
  }
  CpuDevice device_;
  CpuBackend backend_{device_};
  std::unique_ptr<Stream> stream_ = device_.NewStream();
  Parameter parameter_;
  std::vector<float> values_ = {-2, 3, 0.5f};             // cells 0, 2, 4
  std::vector<float> grads_ = {10, 20, -30, 40, 50, 60};  // dense
  std::vector<float> hessian_ = {1, 2, 3, 4, -5, 6};
  std::vector<double> squares_ = {4, 9, 16};
};

TEST_F(CriterionTest, Formulas) {
  EXPECT_EQ(Score("magnitude"), (std::vector<float>{2, 0, 3, 0, 0.5f, 0}));
  EXPECT_EQ(Score("gradient"), (std::vector<float>{10, 0, 30, 0, 50, 0}));
  EXPECT_EQ(Score("taylor"), (std::vector<float>{20, 0, 90, 0, 25, 0}));
  EXPECT_EQ(Score("snip"), Score("taylor"));
  EXPECT_EQ(Score("grasp"), (std::vector<float>{-2, 0, 9, 0, -2.5f, 0}));
  EXPECT_EQ(Score("random"), std::vector<float>(6, 0.0f));
  EXPECT_EQ(Score("wanda"), (std::vector<float>{4, 0, 12, 0, 1.5f, 0}));
  const double initial = InitialValues(parameter_, 3)[4];
  EXPECT_FLOAT_EQ(Score("movement")[4], static_cast<float>((0.25 - initial * initial) / 2));
}

TEST_F(CriterionTest, BlocksSumTheirCells) {
  parameter_.shape = {3, 3};
  // Blocks of 2 x 2 over 3 x 3: the block at (0, 1) holds one column, the one at (1, 0) one row.
  parameter_.layout = SparseLayout::Blocked(3, 3, 2, 2, {0, 2, 3}, {0, 1, 0}).value();
  values_ = {1, 2, 3, 4, -5, 99, 6, 99, 7, 8, 99, 99};  // 99: padding
  grads_.assign(9, 1);
  hessian_.assign(9, 1);
  EXPECT_EQ(Score("magnitude"), (std::vector<float>{10, 11, 15, 0}));
  EXPECT_EQ(Score("gradient"), (std::vector<float>{4, 2, 2, 0}));
  const auto prepared = backend_.PrepareLayout(parameter_.layout);
  std::vector<float> grown(4);
  backend_.ScoreUnits({.weight = prepared.get(),
                       .dense = Dense(grads_),
                       .every_unit = true,
                       .scores = TensorView(grown.data(), DType::kF32, {4})},
                      *stream_);
  EXPECT_EQ(grown, (std::vector<float>{4, 2, 2, 1}));
}

}  // namespace
}  // namespace filigree

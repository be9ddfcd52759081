// What the plans of the weight gradient are made and judged by.
#include "kernels/cuda/sddmm_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>
#include <vector>

#include "kernels/cuda/block_schedule.h"
#include "kernels/cuda/sddmm_lines.h"
#include "kernels/cuda/sddmm_reads.h"

namespace filigree {
namespace {

// 480 of 48 x 40 blocks of 64.
class Drawn {
 public:
  explicit Drawn(int seed) {
    std::vector<char> kept(48 * 40, 0);
    std::fill(kept.begin(), kept.begin() + 480, 1);
    std::mt19937 generator(seed);
    for (int i = 48 * 40 - 1; i > 0; --i) std::swap(kept[i], kept[generator() % (i + 1)]);
    for (int i = 0; i < 48; ++i) {
      for (int j = 0; j < 40; ++j) {
        if (kept[i * 40 + j]) col_.push_back(j);
      }
      row_begin_.push_back(static_cast<int>(col_.size()));
    }
  }
  BsrPattern pattern() const {
    return {.block = {64, 64},
            .block_row_count = 48,
            .block_col_count = 40,
            .row_begin = row_begin_,
            .col = col_};
  }

 private:
  std::vector<int> row_begin_ = {0}, col_;
};

// What is moved across leaves full units, and every block is in one line.
TEST(SddmmLines, RemaindersMoveAcross) {
  for (const int capacity : {2, 8}) {
    for (const bool by_rows : {true, false}) {
      for (int seed = 1; seed <= 10; ++seed) {
        const Drawn drawn(seed);
        SddmmLines lines = ListSddmmLines(drawn.pattern(), by_rows);
        const auto units = [&] {
          size_t count = 0;
          for (const auto& line : lines) count += (line.size() + capacity - 1) / capacity;
          return count;
        };
        const size_t before = units();
        const SddmmLines across = MoveRemainders(&lines, by_rows, by_rows ? 40 : 48, capacity);
        std::set<int> seen;
        for (size_t i = 0; i < lines.size(); ++i) {
          for (const SddmmBlock& block : lines[i]) {
            EXPECT_EQ(by_rows ? block.row : block.col, static_cast<int>(i));
            EXPECT_TRUE(seen.insert(block.index).second);
          }
        }
        for (const auto& line : across) {
          ASSERT_FALSE(line.empty());
          EXPECT_LE(line.size(), static_cast<size_t>(capacity));
          for (const SddmmBlock& block : line) {
            EXPECT_EQ(by_rows ? block.col : block.row, by_rows ? line[0].col : line[0].row);
            EXPECT_TRUE(seen.insert(block.index).second);
          }
        }
        EXPECT_EQ(seen.size(), 480u);
        EXPECT_LT(units() + across.size(), before);
        EXPECT_LE(units() + across.size(), capacity == 2 ? 242u : 67u);  // least: 240, 60
      }
    }
  }
}

// Four workers of a unit in two ranges, X 4 and dY 4 chunks: who shares and who reads again.
TEST(SddmmReads, WorkersFarApartReadAgain) {
  std::vector<SddmmUnit> units(2);
  for (int u = 0; u < 2; ++u) {
    units[u].by_rows = 1;
    units[u].a_chunk = 2 * u;
    units[u].chunk_count[0] = 4;
    for (int c = 0; c < 4; ++c) units[u].b_chunk[c] = c;
  }
  const int64_t chunk_step = 64 * 64 * 2;
  SddmmPlan plan;
  plan.lists = {{{0, 0, 100}}, {{1, 0, 100}}};
  EXPECT_EQ(SddmmReadBytes(plan, units, 2, 12), 800 * chunk_step);
  plan.lists = {{{0, 0, 50}}, {{0, 50, 50}}, {{1, 0, 50}}, {{1, 50, 50}}};
  EXPECT_EQ(SddmmReadBytes(plan, units, 2, 12), 800 * chunk_step);
  // The second unit's tokens from 50 on come 50 steps after the first's: X is read again.
  plan.lists = {{{0, 0, 50}}, {{0, 50, 50}}, {{1, 0, 100}}};
  EXPECT_EQ(SddmmReadBytes(plan, units, 2, 12), (800 + 4 * 50) * chunk_step);
  // Ten steps apart they share.
  plan.lists = {{{0, 0, 100}}, {{1, 10, 90}, {1, 0, 10}}};
  EXPECT_EQ(SddmmReadBytes(plan, units, 2, 12), (800 + 4 * 10) * chunk_step);
  EXPECT_EQ(SddmmReadBytes(plan, units, 2, 8), (800 + 4 * 100) * chunk_step);
}

// Units left over go in equal parts where those fit, and everything is dealt once.
TEST(SddmmPlan, WholeUnitsThenEqualParts) {
  std::vector<SddmmUnit> units(12 + 4);
  for (int u = 0; u < 16; ++u) {
    units[u].by_rows = 1;
    units[u].a_chunk = 2 * u;
    units[u].chunk_count[0] = u < 4 ? 1 : 4;
  }
  const SddmmPlan plan = ChooseSddmmPlan(units, 2, 120, 12);
  EXPECT_TRUE(plan.whole);
  EXPECT_FALSE(plan.rests);
  EXPECT_EQ(plan.steps, 120 + 40);
  EXPECT_TRUE(plan.reduces);
  EXPECT_EQ(plan.slots, 12);
  std::vector<int> steps(16, 0);
  for (const auto& list : plan.lists) {
    ASSERT_FALSE(list.empty());
    EXPECT_EQ(list[0].steps, 120);
    EXPECT_GE(list[0].unit, 4) << "a cheap unit is not among those left over";
    for (const SddmmSlice& slice : list) steps[slice.unit] += slice.steps;
  }
  for (const int sum : steps) EXPECT_EQ(sum, 120);
}

}  // namespace
}  // namespace filigree

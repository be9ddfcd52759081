// The work lists of the block-sparse kernels cover every product exactly once, whatever the layout.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <set>
#include <tuple>
#include <vector>

#include "kernels/cuda/block_schedule.h"

namespace filigree {
namespace {

struct Pattern {
  BlockShape block;
  int rows = 0, cols = 0;
  std::vector<int> row_begin, col;

  BsrPattern view() const { return {block, rows, cols, row_begin, col}; }
};

Pattern RandomPattern(BlockShape block, int rows, int cols, double density, uint64_t seed) {
  std::mt19937_64 rng(seed);
  Pattern pattern{.block = block, .rows = rows, .cols = cols, .row_begin = {0}, .col = {}};
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < cols; ++j) {
      if (static_cast<double>(rng()) / static_cast<double>(~uint64_t{0}) < density) {
        pattern.col.push_back(j);
      }
    }
    pattern.row_begin.push_back(static_cast<int>(pattern.col.size()));
  }
  return pattern;
}

std::vector<Pattern> Patterns() {
  std::vector<Pattern> patterns;
  for (const BlockShape block : {BlockShape{128, 128}, {128, 64}, {64, 128}, {64, 64}}) {
    patterns.push_back(RandomPattern(block, 5, 7, 0.4, 1));
    patterns.push_back(RandomPattern(block, 40, 30, 0.5, 2));   // more units than workers
    patterns.push_back(RandomPattern(block, 24, 24, 0.15, 3));  // fewer
    patterns.push_back(RandomPattern(block, 6, 6, 1.0, 4));
    patterns.push_back(RandomPattern(block, 6, 6, 0.0, 5));
    patterns.push_back(RandomPattern(block, 1, 1, 1.0, 6));
  }
  return patterns;
}

// Block row and block column of every stored block.
std::vector<std::pair<int, int>> Positions(const Pattern& pattern) {
  std::vector<std::pair<int, int>> positions;
  for (int i = 0; i < pattern.rows; ++i) {
    for (int p = pattern.row_begin[i]; p < pattern.row_begin[i + 1]; ++p) {
      positions.push_back({i, pattern.col[p]});
    }
  }
  return positions;
}

constexpr int64_t kTokenCounts[] = {1, 77, 512, 1023, 5000};

TEST(SpmmSchedule, EveryTileOnceAndEveryBlockChunkInIt) {
  for (const Pattern& pattern : Patterns()) {
    const auto positions = Positions(pattern);
    for (const bool transposed : {false, true}) {
      for (const int64_t tokens : kTokenCounts) {
        // Groups of one tile for the even counts, of two for the odd ones.
        const int group = 1 + static_cast<int>(tokens % 2);
        const SpmmTiling tiling{.workers = 13, .tile_tokens = 256, .token_group = group};
        const SpmmSchedule schedule = BuildSpmmSchedule(pattern.view(), transposed, tokens, tiling);
        ASSERT_EQ(schedule.worker_begin.size(), 14u);
        ASSERT_EQ(schedule.worker_begin.back(), static_cast<int>(schedule.tiles.size()));
        const int width = transposed ? pattern.block.cols : pattern.block.rows;
        const int depth = transposed ? pattern.block.rows : pattern.block.cols;
        std::set<std::pair<int, int>> seen;
        for (const SpmmTile& tile : schedule.tiles) {
          EXPECT_TRUE(seen.insert({tile.token_begin, tile.feature_begin}).second);
          const int line = tile.feature_begin / width;
          std::multiset<std::tuple<int, int>> expected, found;  // (stored block, chunk)
          for (size_t p = 0; p < positions.size(); ++p) {
            if ((transposed ? positions[p].second : positions[p].first) != line) continue;
            for (int c = 0; c < depth / kChunk; ++c) expected.insert({static_cast<int>(p), c});
          }
          for (int s = tile.step_begin; s < tile.step_begin + tile.step_count; ++s) {
            const SpmmStep& step = schedule.steps[s];
            const int block = step.weight_row / pattern.block.rows;
            const int chunk =
                transposed ? step.weight_row % pattern.block.rows / kChunk : step.weight_chunk;
            found.insert({block, chunk});
            const int other = transposed ? positions[block].first : positions[block].second;
            EXPECT_EQ(step.input_chunk, other * (depth / kChunk) + chunk);
          }
          EXPECT_EQ(expected, found);
        }
        const int lines = transposed ? pattern.cols : pattern.rows;
        EXPECT_EQ(static_cast<int64_t>(seen.size()), (tokens + 255) / 256 * lines);
      }
    }
  }
}

// In pairs: every tile once, as without, and each worker's first, third, ... are followed by the
// tile half of the features further on.
TEST(SpmmSchedule, PairsAreMadeInTurn) {
  for (const Pattern& pattern : Patterns()) {
    if (pattern.rows % 2 != 0) continue;
    const int half = pattern.rows / 2 * pattern.block.rows;
    for (const int64_t tokens : kTokenCounts) {
      SpmmTiling tiling{.workers = 13, .tile_tokens = 256, .token_group = 2};
      using Tile = std::tuple<int, int, std::vector<std::tuple<int, int, int>>>;
      const auto tiles_of = [](const SpmmSchedule& schedule) {
        std::set<Tile> tiles;
        for (const SpmmTile& tile : schedule.tiles) {
          std::vector<std::tuple<int, int, int>> steps;
          for (int s = tile.step_begin; s < tile.step_begin + tile.step_count; ++s) {
            const SpmmStep& step = schedule.steps[s];
            steps.push_back({step.weight_row, step.weight_chunk, step.input_chunk});
          }
          EXPECT_TRUE(tiles.insert({tile.token_begin, tile.feature_begin, steps}).second);
        }
        return tiles;
      };
      const auto apart = tiles_of(BuildSpmmSchedule(pattern.view(), false, tokens, tiling));
      tiling.pairs = true;
      const SpmmSchedule pairs = BuildSpmmSchedule(pattern.view(), false, tokens, tiling);
      EXPECT_EQ(tiles_of(pairs), apart);
      ASSERT_EQ(pairs.worker_begin.size(), 14u);
      ASSERT_EQ(pairs.worker_begin.back(), std::ssize(pairs.tiles));
      for (size_t w = 0; w < 14; ++w) EXPECT_EQ(pairs.worker_begin[w] % 2, 0);
      for (size_t t = 0; t < pairs.tiles.size(); t += 2) {
        EXPECT_LT(pairs.tiles[t].feature_begin, half);
        EXPECT_EQ(pairs.tiles[t + 1].feature_begin, pairs.tiles[t].feature_begin + half);
        EXPECT_EQ(pairs.tiles[t + 1].token_begin, pairs.tiles[t].token_begin);
      }
    }
  }
}

// Two parts one under the other, with factors that lie apart: every tile of a part takes its factor
// (transposed: every tile all of them), and the steps with blocks are those without factors.
TEST(SpmmSchedule, FactorsAddStepsToTheirOutputs) {
  for (const Pattern& pattern : Patterns()) {
    const auto [rows, cols] = pattern.block;
    const int half = pattern.rows / 2;
    std::vector<FactorPart> parts;
    if (half > 0) parts.push_back({0, half * rows, 0, 0, 128});
    parts.push_back({half * rows, (pattern.rows - half) * rows, 5000, half > 0 ? 128 : 0, 64});
    for (const bool transposed : {false, true}) {
      const SpmmTiling tiling{.workers = 7, .tile_tokens = 256, .token_group = 2};
      const SpmmSchedule plain = BuildSpmmSchedule(pattern.view(), transposed, 700, tiling);
      const SpmmSchedule both = BuildSpmmSchedule(pattern.view(), transposed, 700, tiling, parts);
      using Step = std::tuple<int, int, int>;
      std::map<int, std::vector<Step>> blocks;  // by feature
      for (const SpmmTile& tile : plain.tiles) {
        auto& steps = blocks[tile.feature_begin];
        steps.clear();
        for (int s = tile.step_begin; s < tile.step_begin + tile.step_count; ++s) {
          const SpmmStep& step = plain.steps[s];
          steps.push_back({step.weight_row, step.weight_chunk, step.input_chunk});
        }
      }
      EXPECT_EQ(both.tiles.size(), plain.tiles.size());
      for (const SpmmTile& tile : both.tiles) {
        std::vector<Step> found, expected;
        for (const FactorPart& part : parts) {
          const int line = tile.feature_begin - part.out_begin;
          if (!transposed && (line < 0 || line >= part.out_count)) continue;
          for (int c = 0; c < part.rank / kChunk; ++c) {
            const int inner = ~(part.inner_begin / kChunk + c);
            expected.push_back(
                transposed ? Step{part.row_begin + c * kChunk, tile.feature_begin / kChunk, inner}
                           : Step{part.row_begin + line, c, inner});
          }
        }
        const auto& own = blocks[tile.feature_begin];
        expected.insert(expected.end(), own.begin(), own.end());
        for (int s = tile.step_begin; s < tile.step_begin + tile.step_count; ++s) {
          const SpmmStep& step = both.steps[s];
          found.push_back({step.weight_row, step.weight_chunk, step.input_chunk});
        }
        EXPECT_EQ(found, expected);
      }
    }
  }
}

TEST(SpmmSchedule, LongRowsAreSpreadOverWorkers) {
  Pattern pattern{.block = {128, 128}, .rows = 16, .cols = 64, .row_begin = {0}, .col = {}};
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < (i == 0 ? 64 : 8); ++j) pattern.col.push_back(j);
    pattern.row_begin.push_back(static_cast<int>(pattern.col.size()));
  }
  const SpmmSchedule schedule = BuildSpmmSchedule(
      pattern.view(), false, 16384, {.workers = 8, .tile_tokens = 256, .token_group = 16});
  int64_t total = 0, longest = 0;
  for (int w = 0; w < 8; ++w) {
    int64_t steps = 0;
    for (int t = schedule.worker_begin[w]; t < schedule.worker_begin[w + 1]; ++t) {
      steps += schedule.tiles[t].step_count;
    }
    total += steps;
    longest = std::max(longest, steps);
  }
  EXPECT_LT(longest * 8, total * 1.1);
}

// Of every column of a block row, each 16 tokens are summed once by the segments that the row
// lists, be the row empty; there are lists where they are asked for and A can be the output
// gradient.
void CheckColumnSums(const Pattern& pattern, bool column_sums, const SddmmSchedule& schedule,
                     int steps) {
  const bool can = pattern.block.rows >= pattern.block.cols && !pattern.col.empty();
  ASSERT_EQ(!schedule.sum_begin.empty(), column_sums && can);
  if (schedule.sum_begin.empty()) return;
  for (const SddmmUnit& unit : schedule.units) ASSERT_EQ(unit.by_rows, 1);
  ASSERT_EQ(static_cast<int>(schedule.sum_begin.size()), pattern.rows + 1);
  const int width = pattern.block.rows;
  for (int i = 0; i < pattern.rows; ++i) {
    // By columns: with slices of 128 each warpgroup has 64 of them, with slices of 64 both have
    // all.
    std::vector<std::vector<int>> covered(width / kChunk, std::vector<int>(4 * steps, 0));
    std::pair<int, int> last = {-1, -1};
    for (int k = schedule.sum_begin[i]; k < schedule.sum_begin[i + 1]; ++k) {
      const SddmmSegment& segment = schedule.segments[schedule.sum_segments[k]];
      const SddmmUnit& unit = schedule.units[segment.unit];
      ASSERT_EQ(unit.a_chunk, i * width / kChunk);
      const std::pair<int, int> next = {segment.unit, segment.token_begin};
      EXPECT_LT(last, next) << "an order that is no function of the layout";
      last = next;
      for (int group = 0; group < 2; ++group) {
        const int taken = unit.sum_count[group];
        ASSERT_TRUE(taken == 0 || taken == 1 || taken == 2 || taken == 4) << taken;
        if (unit.chunk_count[0] == 0) {
          EXPECT_TRUE(taken == 4 || (taken == 0 && group == 1)) << taken;
        } else if (taken > 0) {
          EXPECT_GT(unit.chunk_count[width == 128 ? 0 : group], 0);
        }
        for (int step = 0; step < segment.step_count; ++step) {
          for (int slice = unit.sum_first[group]; slice < unit.sum_first[group] + taken; ++slice) {
            ASSERT_LT(slice, 4);
            ++covered[width == 128 ? group : 0][4 * (segment.token_begin / 64 + step) + slice];
          }
        }
      }
    }
    for (const std::vector<int>& counts : covered) {
      EXPECT_EQ(std::count(counts.begin(), counts.end(), 1), 4 * steps) << "block row " << i;
    }
  }
}

// Tokens, workers, column sums.
class SddmmScheduleTest : public testing::TestWithParam<std::tuple<int64_t, int, bool>> {};

// Every chunk of the gradient belongs to one unit, which names its operands.
void CheckUnits(const Pattern& pattern, const SddmmSchedule& schedule) {
  const auto [rows, cols] = pattern.block;
  const auto positions = Positions(pattern);
  // The first element of a row (or column) of 64 in the gradient, of its stored block, in 64s.
  std::set<int> expected, found;
  for (size_t p = 0; p < positions.size(); ++p) {
    for (int chunk = 0; chunk < rows * cols / 64 / 64; ++chunk) {
      expected.insert(static_cast<int>(p) * rows * cols / kChunk / kChunk + chunk);
    }
  }
  for (const SddmmUnit& unit : schedule.units) {
    const bool by_rows = unit.by_rows == 1;
    EXPECT_GE(by_rows ? rows : cols, by_rows ? cols : rows) << "the wider side is not shared";
    for (int slot = 0; slot < 8; ++slot) {
      if (slot % 4 >= unit.chunk_count[slot / 4]) continue;
      const int64_t element = int64_t{unit.gradient_chunk[slot]} * kChunk;
      const auto [i, j] = positions[element / (rows * cols)];
      const int row = static_cast<int>(element % (rows * cols)) / cols, col = element % cols;
      EXPECT_EQ(unit.a_chunk, by_rows ? i * rows / kChunk : j * cols / kChunk);
      EXPECT_EQ(unit.b_chunk[slot] * kChunk, by_rows ? j * cols + col : i * rows + row);
      EXPECT_EQ(by_rows ? row : col, 0);
      // A chunk by rows is `rows` x 64, by columns 64 x `cols`: one or two squares of 64.
      const int width = cols / kChunk, down = row / kChunk, across = col / kChunk;
      for (int square = 0; square < (by_rows ? rows : cols) / kChunk; ++square) {
        const int index = by_rows ? square * width + across : down * width + square;
        EXPECT_TRUE(
            found
                .insert(static_cast<int>(element / (rows * cols)) * rows * cols / kChunk / kChunk +
                        index)
                .second);
      }
    }
  }
  EXPECT_EQ(expected, found);
}

// Every unit's tokens are covered once, by numbered partial sums in the order of their tokens, and
// by one segment that writes the gradient; workers before its own make the sums that it adds. A
// unit without such a segment is listed for the second kernel.
void CheckSegments(const SddmmSchedule& schedule, int steps, int workers) {
  std::vector<std::vector<int>> covered(schedule.units.size(), std::vector<int>(steps, 0));
  std::vector<int> writer(schedule.units.size(), -1);
  std::vector<const SddmmSegment*> slots(schedule.slot_count, nullptr);
  std::vector<int> slot_worker(schedule.slot_count, -1);
  ASSERT_EQ(static_cast<int>(schedule.worker_begin.size()), workers + 1);
  int most = 0;
  for (int w = 0; w < workers; ++w) {
    int own = 0;
    for (int s = schedule.worker_begin[w]; s < schedule.worker_begin[w + 1]; ++s) {
      const SddmmSegment& segment = schedule.segments[s];
      ASSERT_GT(segment.step_count, 0);
      own += segment.step_count;
      for (int k = 0; k < segment.step_count; ++k) {
        ++covered[segment.unit][segment.token_begin / 64 + k];
      }
      if (segment.target == kTargetGradient) {
        EXPECT_EQ(writer[segment.unit], -1);
        writer[segment.unit] = w;
      } else {
        ASSERT_EQ(slots[segment.target], nullptr);
        slots[segment.target] = &segment;
        slot_worker[segment.target] = w;
      }
    }
    most = std::max(most, own);
  }
  EXPECT_EQ(schedule.worker_steps, most);
  int listed = 0;
  std::set<int> reductions(schedule.reductions.begin(), schedule.reductions.end());
  ASSERT_EQ(reductions.size(), schedule.reductions.size());
  for (size_t u = 0; u < schedule.units.size(); ++u) {
    ASSERT_EQ(writer[u] == -1, reductions.count(static_cast<int>(u)) == 1) << "unit " << u;
    for (int count : covered[u]) ASSERT_EQ(count, 1);
    const SddmmUnit& unit = schedule.units[u];
    listed += unit.slot_count;
    EXPECT_TRUE(unit.slot_count == 0 || writer[u] == -1 || reductions.empty());
    for (int k = unit.slot_begin; k < unit.slot_begin + unit.slot_count; ++k) {
      ASSERT_NE(slots[k], nullptr);
      EXPECT_EQ(slots[k]->unit, static_cast<int>(u));
      EXPECT_TRUE(writer[u] == -1 || slot_worker[k] < writer[u])
          << "may wait for a worker that has not begun";
      const int before = k > unit.slot_begin ? slots[k - 1]->token_begin : -1;
      EXPECT_LT(before, slots[k]->token_begin);
    }
  }
  EXPECT_EQ(listed, schedule.slot_count);
}

TEST_P(SddmmScheduleTest, EveryChunkAndTokenOnceAndTargetsConsistent) {
  const auto [tokens, workers, column_sums] = GetParam();
  const int steps = static_cast<int>((tokens + 63) / 64);
  for (const Pattern& pattern : Patterns()) {
    const SddmmSchedule schedule =
        BuildSddmmSchedule(pattern.view(), tokens, workers, {column_sums});
    CheckUnits(pattern, schedule);
    CheckSegments(schedule, steps, workers);
    CheckColumnSums(pattern, column_sums, schedule, steps);
  }
}

INSTANTIATE_TEST_SUITE_P(TokensAndWorkers, SddmmScheduleTest,
                         testing::Combine(testing::ValuesIn(kTokenCounts),
                                          testing::Values(1, 13, 132), testing::Bool()));

// GPT-3 XL's q, k, v at 75 %: 96 units, of which 36 spare workers take the ends.
TEST(BlockSchedule, SpareWorkersTakeEnds) {
  Pattern pattern{.block = {128, 128}, .rows = 48, .cols = 16, .row_begin = {0}, .col = {}};
  for (int i = 0; i < pattern.rows; ++i) {
    for (int j = i % 4; j < pattern.cols; j += 4) pattern.col.push_back(j);
    pattern.row_begin.push_back(static_cast<int>(pattern.col.size()));
  }
  const SddmmSchedule schedule = BuildSddmmSchedule(pattern.view(), 16384, 132);
  EXPECT_EQ(schedule.units.size(), 96u);
  EXPECT_LE(schedule.worker_steps, 196);  // of 256, where 187 is the mean
  EXPECT_EQ(schedule.slot_count, 96);
  EXPECT_TRUE(schedule.reductions.empty());
}

// Rows of odd length, whose last blocks meet in few columns: no unit is half filled.
TEST(BlockSchedule, OddRowsArePairedAlongColumns) {
  Pattern pattern{.block = {128, 128}, .rows = 24, .cols = 16, .row_begin = {0}, .col = {}};
  for (int i = 0; i < pattern.rows; ++i) {
    for (int k = 0; k < 3; ++k) pattern.col.push_back(i % 12 + 2 * k);
    pattern.row_begin.push_back(static_cast<int>(pattern.col.size()));
  }
  const SddmmSchedule schedule = BuildSddmmSchedule(pattern.view(), 4096, 132);
  EXPECT_EQ(schedule.units.size(), 36u);
  int across = 0;
  for (const SddmmUnit& unit : schedule.units) across += 1 - unit.by_rows;
  EXPECT_EQ(across, 12);
  CheckUnits(pattern, schedule);
}

// Units over are shared by all, in the same tokens: of 192 units on 132 workers 60.
TEST(BlockSchedule, UnitsLeftOverAreShared) {
  Pattern pattern{.block = {128, 128}, .rows = 48, .cols = 16, .row_begin = {0}, .col = {}};
  for (int i = 0; i < pattern.rows; ++i) {
    for (int j = i % 2; j < pattern.cols; j += 2) pattern.col.push_back(j);
    pattern.row_begin.push_back(static_cast<int>(pattern.col.size()));
  }
  const SddmmSchedule schedule = BuildSddmmSchedule(pattern.view(), 16384, 132);
  EXPECT_EQ(schedule.units.size(), 192u);
  EXPECT_LE(schedule.worker_steps, 256 + 128);  // of 512 without, where 373 is the mean
}

// `blocks` of a grid, drawn anew for every seed.
Pattern RandomPattern(int rows, int cols, int block, int blocks, int seed) {
  std::vector<char> kept(rows * cols, 0);
  std::fill(kept.begin(), kept.begin() + blocks, 1);
  std::mt19937 generator(seed);
  for (int i = rows * cols - 1; i > 0; --i) std::swap(kept[i], kept[generator() % (i + 1)]);
  Pattern pattern{.block = {block, block}, .rows = rows, .cols = cols, .row_begin = {0}, .col = {}};
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < cols; ++j) {
      if (kept[i * cols + j]) pattern.col.push_back(j);
    }
    pattern.row_begin.push_back(static_cast<int>(pattern.col.size()));
  }
  return pattern;
}

// Random layouts of the benchmarks' shapes: what units and steps the plan promises, for any seed.
TEST(BlockSchedule, RandomLayoutsFillTheirUnitsAndWorkers) {
  struct Shape {
    int rows, cols, block, zeros;  // in blocks; per cent
    size_t most_units;
    int most_steps;
    bool paced;
  };
  // Full units: 192, 256 and 77, 102, 102 blocks by twos; 768 and 1024 by eights.
  const Shape shapes[] = {
      {48, 16, 128, 75, 98, 256, false},  {64, 16, 128, 75, 130, 256, false},
      {16, 64, 128, 75, 130, 256, false}, {32, 32, 128, 75, 130, 256, false},
      {48, 16, 128, 90, 43, 86, true},    {64, 16, 128, 90, 55, 128, true},
      {32, 32, 128, 90, 56, 128, false},  {16, 16, 128, 75, 33, 64, false},
      {128, 32, 64, 75, 132, 256, true},  {32, 128, 64, 75, 132, 256, true},
      {64, 64, 64, 75, 130, 256, true},   {96, 32, 64, 75, 132, 256, true},
      {96, 32, 64, 90, 60, 128, false},   {43, 16, 128, 75, 88, 256, false},
  };
  for (const Shape& shape : shapes) {
    const int blocks =
        static_cast<int>(std::lround(shape.rows * shape.cols * (100 - shape.zeros) / 100.0));
    for (int seed = 1; seed <= 10; ++seed) {
      SCOPED_TRACE(testing::Message() << shape.rows << "x" << shape.cols << " blocks of "
                                      << shape.block << ", " << shape.zeros << " %, seed " << seed);
      const Pattern pattern = RandomPattern(shape.rows, shape.cols, shape.block, blocks, seed);
      const SddmmSchedule schedule = BuildSddmmSchedule(pattern.view(), 16384, 132);
      EXPECT_LE(schedule.units.size(), shape.most_units);
      EXPECT_LE(schedule.worker_steps, shape.most_steps);
      EXPECT_EQ(schedule.paced, shape.paced);
      CheckUnits(pattern, schedule);
      CheckSegments(schedule, 256, 132);
    }
  }
}

// GPT-3 XL's attention output at 75 %: 32 units in four parts, workers of one part side by side.
TEST(BlockSchedule, NeighboursAreAtTheSameTokens) {
  const Pattern pattern = RandomPattern(16, 16, 128, 64, 1);
  const SddmmSchedule schedule = BuildSddmmSchedule(pattern.view(), 16384, 132);
  EXPECT_EQ(schedule.reductions.size(), schedule.units.size());
  int before = 0;
  for (const SddmmSegment& segment : schedule.segments) {
    EXPECT_GE(segment.token_begin, before);
    before = segment.token_begin;
  }
}

// Two weights as one pattern: the steps and chunks of the second lie where its values do.
TEST(BlockSchedule, ValuesMayLieApart) {
  for (const Pattern& pattern : Patterns()) {
    const int64_t block = int64_t{pattern.block.rows} * pattern.block.cols;
    const int half = pattern.row_begin[pattern.rows / 2];
    const int64_t gap = 5 * block;
    std::vector<int64_t> value_begin;
    for (int p = 0; p < static_cast<int>(pattern.col.size()); ++p) {
      value_begin.push_back(p * block + (p < half ? 0 : gap));
    }
    BsrPattern apart = pattern.view();
    apart.value_begin = value_begin;
    const auto shifted = [&](int64_t element) {
      return element < half * block ? element : element + gap;
    };
    for (const bool transposed : {false, true}) {
      const SpmmTiling tiling = {.workers = 7, .tile_tokens = 256, .token_group = 2};
      const SpmmSchedule close = BuildSpmmSchedule(pattern.view(), transposed, 1000, tiling);
      const SpmmSchedule wide = BuildSpmmSchedule(apart, transposed, 1000, tiling);
      ASSERT_EQ(close.steps.size(), wide.steps.size());
      for (size_t i = 0; i < close.steps.size(); ++i) {
        const int64_t element = int64_t{close.steps[i].weight_row} * pattern.block.cols;
        EXPECT_EQ(wide.steps[i].weight_row, shifted(element) / pattern.block.cols);
        EXPECT_EQ(wide.steps[i].input_chunk, close.steps[i].input_chunk);
      }
    }
    const SddmmSchedule close = BuildSddmmSchedule(pattern.view(), 1000, 7);
    const SddmmSchedule wide = BuildSddmmSchedule(apart, 1000, 7);
    ASSERT_EQ(close.units.size(), wide.units.size());
    for (size_t u = 0; u < close.units.size(); ++u) {
      for (int slot = 0; slot < 8; ++slot) {
        if (slot % 4 >= close.units[u].chunk_count[slot / 4]) continue;
        const int64_t element = int64_t{close.units[u].gradient_chunk[slot]} * kChunk;
        EXPECT_EQ(wide.units[u].gradient_chunk[slot], shifted(element) / kChunk);
      }
    }
  }
}

}  // namespace
}  // namespace filigree

// What topology rules read and choose, on the GPU: to the unit what the CPU chooses for the same
// scores.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/base/rng.h"
#include "kernels/sparse/random_layout.h"
#include "tests/gpu/gpu_testing.h"
#include "tests/unit/topology_testing.h"

namespace filigree {
namespace {

template <typename T>
std::vector<T> Download(const DeviceBuffer& buffer, size_t size, Device& device, Stream& stream) {
  std::vector<T> host(size);
  const auto count = static_cast<int64_t>(size);
  device.CopyAsync(TensorView(host.data(), DTypeOf<T>::value, {count}),
                   buffer.View(DTypeOf<T>::value, count), stream);
  stream.Synchronize();
  return host;
}

// A pool on the host; no scores: all equal.
struct HostPool {
  std::vector<float> scores;
  std::vector<uint8_t> marks;
};

struct Selection {
  std::vector<std::vector<uint8_t>> marks;
  std::vector<int64_t> counts;
  bool operator==(const Selection&) const = default;
};

class GpuSelectionTest : public GpuTest {
 protected:
  static Selection Select(const std::vector<HostPool>& pools, SelectHighestArgs args,
                          Backend& backend, Stream& on) {
    Device& device = backend.device();
    std::vector<DeviceBuffer> scores, marks;
    std::vector<SelectionPool> views;
    for (const HostPool& pool : pools) {
      const auto units = static_cast<int64_t>(pool.marks.size());
      scores.push_back(Upload(pool.scores, device, on));
      marks.push_back(Upload(pool.marks, device, on));
      views.push_back({.marks = marks.back().View(DType::kU8, units),
                       .stream = RngStream("test", "pool", views.size())});
      if (!pool.scores.empty()) views.back().scores = scores.back().View(DType::kF32, units);
    }
    const auto count = static_cast<int64_t>(pools.size());
    const DeviceBuffer counts = Upload(std::vector<int64_t>(pools.size(), -1), device, on);
    args.pools = views;
    args.chosen_counts = counts.View(DType::kI64, count);
    backend.SelectHighest(args, on);
    Selection result;
    for (size_t i = 0; i < pools.size(); ++i) {
      result.marks.push_back(Download<uint8_t>(marks[i], pools[i].marks.size(), device, on));
    }
    result.counts = Download<int64_t>(counts, pools.size(), device, on);
    return result;
  }

  // The GPU's choice is the CPU's, and its number is exact.
  void ExpectSame(const std::vector<HostPool>& pools, const SelectHighestArgs& args,
                  const std::string& what) {
    const Selection ours = Select(pools, args, gpu(), stream());
    EXPECT_TRUE(ours == Select(pools, args, cpu(), cpu_stream())) << what << " of " << args.count;
    int64_t candidates = 0, already = 0, chosen = 0;
    for (size_t i = 0; i < pools.size(); ++i) {
      candidates += std::count(pools[i].marks.begin(), pools[i].marks.end(), args.from);
      if (args.chosen != args.from) {
        already += std::count(pools[i].marks.begin(), pools[i].marks.end(), args.chosen);
      }
      chosen += ours.counts[i];
    }
    if (args.chosen == args.rest) return;
    EXPECT_EQ(chosen - already, std::clamp<int64_t>(args.count, 0, candidates)) << what;
  }

  void ExpectSameAtAllCounts(const std::vector<HostPool>& pools, SelectHighestArgs args,
                             const std::string& what) {
    int64_t candidates = 0;
    for (const HostPool& pool : pools) {
      candidates += std::count(pool.marks.begin(), pool.marks.end(), args.from);
    }
    for (const int64_t count : {int64_t{0}, int64_t{1}, candidates / 4, candidates / 2,
                                candidates - 1, candidates, candidates + 5}) {
      args.count = count;
      ExpectSame(pools, args, what);
    }
  }
};

enum class Kind { kNormal, kTies, kEqual, kSpecial, kNone };

std::vector<float> Scores(Kind kind, int64_t units, uint64_t seed) {
  const float inf = std::numeric_limits<float>::infinity();
  const float special[] = {0.0f, -0.0f, inf, -inf, std::nanf(""), 1e-45f, -1e-45f, 1.0f};
  std::vector<float> scores;
  if (kind == Kind::kNone) return scores;
  for (int64_t i = 0; i < units; ++i) {
    switch (kind) {
      case Kind::kNormal:
        scores.push_back(static_cast<float>(RandomNormal(seed, 1, i)));
        break;
      case Kind::kTies:
        scores.push_back(static_cast<float>(RandomBelow(seed, 1, i, 5)) - 2);
        break;
      case Kind::kEqual:
        scores.push_back(0.25f);
        break;
      default:
        scores.push_back(special[RandomBelow(seed, 1, i, 8)]);
    }
  }
  return scores;
}

// Marks 0 to 3, about a quarter each; or 1 alone.
HostPool MakePool(Kind kind, int64_t units, bool all, uint64_t seed) {
  HostPool pool = {.scores = Scores(kind, units, seed), .marks = {}};
  for (int64_t i = 0; i < units; ++i) {
    pool.marks.push_back(all ? 1 : static_cast<uint8_t>(RandomBelow(seed, 2, i, 4)));
  }
  return pool;
}

TEST_F(GpuSelectionTest, ChoosesWhatTheCpuChooses) {
  for (const Kind kind : {Kind::kNormal, Kind::kTies, Kind::kEqual, Kind::kSpecial, Kind::kNone}) {
    for (const int64_t units : {1, 37, 5000, 70001}) {
      for (const bool all : {true, false}) {
        const std::vector<HostPool> pools = {MakePool(kind, units, all, 5)};
        const std::string what =
            std::to_string(units) + " units of kind " + std::to_string(static_cast<int>(kind));
        SelectHighestArgs args;
        args.seed = 11;
        ExpectSameAtAllCounts(pools, args, what);
        args.magnitudes = true;
        args.from = 0;
        args.chosen = 1;
        args.rest = 2;
        ExpectSameAtAllCounts(pools, args, what + ", magnitudes of others");
      }
    }
  }
}

TEST_F(GpuSelectionTest, SeveralPoolsShareOneThreshold) {
  for (const Kind kind : {Kind::kNormal, Kind::kTies, Kind::kNone}) {
    const std::vector<HostPool> pools = {
        MakePool(kind, 3001, false, 1), MakePool(kind, 64, false, 2),
        MakePool(kind, 20000, true, 3), MakePool(kind, 1, true, 4)};
    SelectHighestArgs args;
    args.seed = 3;
    args.chosen = 3;
    args.rest = 0;
    ExpectSameAtAllCounts(pools, args, "pools of kind " + std::to_string(static_cast<int>(kind)));
  }
}

// Pools whose draws are the same: the order of pools and units decides.
TEST_F(GpuSelectionTest, EqualDrawsGoByPool) {
  constexpr int64_t kUnits = 1000, kCount = 777;
  for (Backend* backend : {static_cast<Backend*>(&gpu()), static_cast<Backend*>(&cpu())}) {
    Stream& on = backend == &gpu() ? stream() : cpu_stream();
    const std::vector<uint8_t> ones(kUnits, 1);
    const DeviceBuffer a = Upload(ones, backend->device(), on);
    const DeviceBuffer b = Upload(ones, backend->device(), on);
    const SelectionPool pools[] = {{.marks = a.View(DType::kU8, kUnits), .stream = 9},
                                   {.marks = b.View(DType::kU8, kUnits), .stream = 9}};
    backend->SelectHighest({.pools = pools, .count = kCount, .seed = 1}, on);
    const auto first = Download<uint8_t>(a, kUnits, backend->device(), on);
    const auto second = Download<uint8_t>(b, kUnits, backend->device(), on);
    // Each draw comes twice, the first pool's before the second's.
    EXPECT_EQ(std::count(first.begin(), first.end(), 1), kCount / 2 + 1);
    EXPECT_EQ(std::count(second.begin(), second.end(), 1), kCount / 2);
    for (int64_t i = 0; i < kUnits; ++i) EXPECT_GE(first[i], second[i]);
  }
}

// More units than 32 bits count. Memory is the GPU's alone: the choice is checked by its number.
TEST_F(GpuSelectionTest, LargeCountsPassThirtyTwoBits) {
  constexpr int64_t kUnits = (int64_t{1} << 32) + 12345;
  const DeviceBuffer buffer = device().Allocate(kUnits, "test");
  const TensorView marks = buffer.View(DType::kU8, kUnits);
  device().ZeroAsync(marks, stream());
  const SelectionPool pool = {.marks = marks, .stream = 5};
  const DeviceBuffer counts = Upload(std::vector<int64_t>{-1}, device(), stream());
  SelectHighestArgs args = {.pools = {&pool, 1}, .count = kUnits - 1000, .seed = 1};
  args.from = 0;
  args.chosen_counts = counts.View(DType::kI64, 1);
  args.rest = 2;
  gpu().SelectHighest(args, stream());
  EXPECT_EQ(Download<int64_t>(counts, 1, device(), stream())[0], kUnits - 1000);
  // Of those, all but seven.
  args.from = 1;
  args.chosen = 3;
  args.count = kUnits - 1007;
  gpu().SelectHighest(args, stream());
  EXPECT_EQ(Download<int64_t>(counts, 1, device(), stream())[0], kUnits - 1007);
}

struct ScoreCase {
  int64_t out, in;
  int block_out, block_in;
};
constexpr ScoreCase kScoreCases[] = {
    {1, 1, 1, 1}, {300, 517, 1, 1}, {40, 70000, 1, 1}, {130, 200, 4, 8}, {300, 500, 64, 128}};

SparseLayout LayoutOf(const ScoreCase& c, double density) {
  if (c.block_out * c.block_in == 1) return RandomUnstructured(c.out, c.in, density, 1, "w");
  return RandomBalancedBlocks(c.out, c.in, c.block_out, c.block_in, density, 1, "w");
}

std::vector<float> Integers(int64_t count, uint64_t seed) {
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) {
    values.push_back(static_cast<float>(RandomBelow(seed, 3, i, 9)) - 4);
  }
  return values;
}

// Small integers, whose sums are exact: the scores are the CPU's bit for bit.
TEST_F(GpuSelectionTest, MarksAndScoresFollowTheReference) {
  for (const ScoreCase& c : kScoreCases) {
    const SparseLayout layout = LayoutOf(c, 0.3);
    const std::vector<float> values = Integers(layout.stored_count(), 1);
    const std::vector<float> dense = Integers(c.out * c.in, 2), columns = Integers(c.in, 3);
    const auto units = static_cast<size_t>(UnitCount(layout));
    const auto run = [&](Backend& backend, Stream& on, int parts, bool absolute) {
      Device& device = backend.device();
      const auto prepared = backend.PrepareLayout(layout);
      const DeviceBuffer v = Upload(values, device, on), d = Upload(dense, device, on);
      const DeviceBuffer f = Upload(columns, device, on);
      const DeviceBuffer marks = Upload(std::vector<uint8_t>(units, 7), device, on);
      const DeviceBuffer scores = Upload(std::vector<float>(units, 99.0f), device, on);
      backend.MarkStored(
          {.weight = prepared.get(), .marks = marks.View(DType::kU8, static_cast<int64_t>(units))},
          on);
      ScoreUnitsArgs args = {.weight = prepared.get(),
                             .absolute = absolute,
                             .every_unit = parts == 0,
                             .scores = scores.View(DType::kF32, static_cast<int64_t>(units))};
      if (parts & 1) args.values = v.View(DType::kF32, layout.stored_count());
      if (parts != 1) {
        args.dense = d.View(DType::kF32, c.out * c.in).Reshape({c.out, c.in});
      }
      if (parts & 2) args.column_factors = f.View(DType::kF32, c.in);
      backend.ScoreUnits(args, on);
      return std::pair(Download<uint8_t>(marks, units, device, on),
                       Download<float>(scores, units, device, on));
    };
    for (const int parts : {0, 1, 2, 3}) {
      for (const bool absolute : {true, false}) {
        const auto ours = run(gpu(), stream(), parts, absolute);
        EXPECT_TRUE(ours == run(cpu(), cpu_stream(), parts, absolute))
            << c.out << " x " << c.in << " in " << c.block_out << " x " << c.block_in << ", parts "
            << parts;
        EXPECT_EQ(ours.first, LiveUnits(layout));
      }
    }
  }
}

// The whole engine: every rule's events give the CPU's layouts.
TEST_F(GpuSelectionTest, LayoutsAreTheCpus) {
  for (const char* distribution : {"uniform", "erk", "global"}) {
    for (const Growth growth : {Growth::kNone, Growth::kRandom, Growth::kGradient}) {
      for (const bool blocked : {false, true}) {
        SparsitySpec spec = RuleSpec("rigl", 0.75);
        spec.distribution = distribution;
        spec.min_density = 0.1;
        std::vector<ScoredWeight> weights;
        for (const auto& [out, in] : {std::pair{96, 200}, std::pair{64, 330}, std::pair{7, 40}}) {
          const int height = blocked ? 4 : 1, width = blocked ? 8 : 1;
          const ScoreCase shape = {out, in, height, width};
          SparseLayout layout = LayoutOf(shape, 0.5);
          const int64_t units = UnitCount(layout);
          ScoredWeight weight{{.name = "w" + std::to_string(in),
                               .shape = {out, in, units},
                               .layout = std::move(layout)}};
          weight.keep_scores = Scores(Kind::kTies, units, 1);
          if (growth == Growth::kGradient) weight.grow_scores = Scores(Kind::kTies, units, 2);
          weights.push_back(std::move(weight));
        }
        TopologyAction action = {.sparsity = 0.7};
        if (growth != Growth::kNone) action.drop_fraction = 0.3;
        const auto ours = ProposeGiven(weights, spec, action, growth, 5, 100, gpu());
        EXPECT_TRUE(ours == ProposeGiven(weights, spec, action, growth, 5, 100, cpu()))
            << distribution << (blocked ? ", blocks" : ", cells");
      }
    }
  }
}

}  // namespace
}  // namespace filigree

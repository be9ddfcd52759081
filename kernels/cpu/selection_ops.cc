// Exact selection of the highest scores: a histogram of the keys' upper halves, one of the lower
// halves of those that begin as the threshold does, and the ties in the order that was drawn.
#include <omp.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <compare>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/base/rng.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/matrix.h"
#include "kernels/cpu/parallel.h"

namespace filigree {
namespace {

// Keys order as scores do; -0 is 0 and NaN comes before everything.
uint32_t KeyOf(float score) {
  if (std::isnan(score)) return 0;
  const auto bits = std::bit_cast<uint32_t>(score == 0 ? 0.0f : score);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// A pool as loops over its units read it.
struct Units {
  const float* scores;  // null: all equal
  uint8_t* marks;
  int64_t count;
  uint64_t stream;
  bool magnitudes;

  uint32_t Key(int64_t unit) const {
    if (!scores) return KeyOf(0);
    return KeyOf(magnitudes ? std::abs(scores[unit]) : scores[unit]);
  }
};

// Calls fn(thread, pool, begin, end) for ranges of units that cover all pools, from CpuThreads()
// threads. Whether a unit takes part is anybody's guess, so loops over them count with the flag
// instead of branching on it.
template <typename Fn>
void ForEachRange(const std::vector<Units>& pools, const Fn& fn) {
#pragma omp parallel num_threads(CpuThreads())
  {
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    for (size_t p = 0; p < pools.size(); ++p) {
      const int64_t units = pools[p].count;
      fn(static_cast<size_t>(thread), p, units * thread / threads, units * (thread + 1) / threads);
    }
  }
}

using Histogram = std::vector<int64_t>;

// How many units marked `from` have each value of 16 bits of their keys; with `prefix`, of those
// keys alone that begin with it.
Histogram CountKeys(const std::vector<Units>& pools, uint8_t from, int shift,
                    std::optional<uint32_t> prefix) {
  std::vector<Histogram> counts(CpuThreads(), Histogram(1 << 16, 0));
  const bool all = !prefix;
  const uint32_t begins = prefix.value_or(0);
  ForEachRange(pools, [&](size_t thread, size_t p, int64_t begin, int64_t end) {
    int64_t* count = counts[thread].data();
    for (int64_t unit = begin; unit < end; ++unit) {
      const uint32_t key = pools[p].Key(unit);
      count[(key >> shift) & 0xffff] +=
          (pools[p].marks[unit] == from) & (all | (key >> 16 == begins));
    }
  });
  for (size_t thread = 1; thread < counts.size(); ++thread) {
    for (size_t bin = 0; bin < counts[0].size(); ++bin) counts[0][bin] += counts[thread][bin];
  }
  return std::move(counts[0]);
}

// The highest key of which at least `count` of the units, whose keys' upper halves `upper` counts,
// have as much or more; *above is how many have more. One pass over what begins as that key does.
uint32_t ThresholdKey(const std::vector<Units>& pools, uint8_t from, const Histogram& upper,
                      int64_t count, int64_t* above) {
  *above = 0;
  const auto bin_of = [&](const Histogram& histogram) {
    uint32_t bin = 0xffff;
    while (bin > 0 && *above + histogram[bin] < count) *above += histogram[bin--];
    return bin;
  };
  const uint32_t prefix = bin_of(upper);
  return prefix << 16 | bin_of(CountKeys(pools, from, 0, prefix));
}

// A unit that has the threshold's score.
struct Tie {
  uint64_t order;  // drawn
  size_t pool;
  int64_t unit;
  auto operator<=>(const Tie&) const = default;
};

// Marks what is above the threshold, and all others as the rest; returns those that tie.
std::vector<Tie> MarkAbove(const std::vector<Units>& pools, const SelectHighestArgs& args,
                           uint32_t threshold) {
  std::vector<std::vector<Tie>> found(CpuThreads());
  ForEachRange(pools, [&](size_t thread, size_t p, int64_t begin, int64_t end) {
    const Units& units = pools[p];
    for (int64_t unit = begin; unit < end; ++unit) {
      const uint8_t mark = units.marks[unit];
      const uint32_t key = units.Key(unit);
      const uint8_t decided = key > threshold ? args.chosen : args.rest;
      units.marks[unit] = mark == args.from ? decided : mark;
      if (key != threshold || mark != args.from) continue;
      const uint64_t order = RandomBits(args.seed, units.stream, static_cast<uint64_t>(unit));
      found[thread].push_back({order, p, unit});
    }
  });
  std::vector<Tie> ties = std::move(found[0]);
  for (size_t thread = 1; thread < found.size(); ++thread) {
    ties.insert(ties.end(), found[thread].begin(), found[thread].end());
  }
  return ties;
}

void MarkAll(const std::vector<Units>& pools, uint8_t from, uint8_t to) {
  ForEachRange(pools, [&](size_t, size_t p, int64_t begin, int64_t end) {
    std::replace(pools[p].marks + begin, pools[p].marks + end, from, to);
  });
}

void CountChosen(const std::vector<Units>& pools, const SelectHighestArgs& args) {
  int64_t* counts =
      AsVector<int64_t>(args.chosen_counts, static_cast<int64_t>(pools.size()), "chosen_counts");
  for (size_t p = 0; p < pools.size(); ++p) {
    counts[p] = std::count(pools[p].marks, pools[p].marks + pools[p].count, args.chosen);
  }
}

}  // namespace

void CpuBackend::SelectHighest(const SelectHighestArgs& args, Stream&) {
  std::vector<Units> pools;
  for (const SelectionPool& pool : args.pools) {
    const int64_t count = pool.marks.size();
    const float* scores =
        pool.scores.empty() ? nullptr : AsVector<float>(pool.scores, count, "scores");
    pools.push_back({scores, AsVector<uint8_t>(pool.marks, count, "marks"), count, pool.stream,
                     args.magnitudes});
  }
  const Histogram upper = CountKeys(pools, args.from, 16, std::nullopt);
  const int64_t units = std::accumulate(upper.begin(), upper.end(), int64_t{0});
  const int64_t count = std::min(args.count, units);
  if (count <= 0 || count == units) {
    MarkAll(pools, args.from, count <= 0 ? args.rest : args.chosen);
  } else {
    int64_t above = 0;
    const uint32_t threshold = ThresholdKey(pools, args.from, upper, count, &above);
    std::vector<Tie> ties = MarkAbove(pools, args, threshold);
    const int64_t wanted = count - above;
    std::nth_element(ties.begin(), ties.begin() + (wanted - 1), ties.end());
    for (int64_t i = 0; i < wanted; ++i) pools[ties[i].pool].marks[ties[i].unit] = args.chosen;
  }
  if (!args.chosen_counts.empty()) CountChosen(pools, args);
}

}  // namespace filigree

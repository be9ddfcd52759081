// SelectHighest: radix select over keys that no two units share, so that the result is the CPU's to
// the unit, ties included.
//
// A unit's key has 160 bits: its score, ordered as an integer; the complement of its draw; the
// complement of its place (pool and index). From the highest eight bits down, one pass over all
// pools counts the values of a digit among the units that begin as the threshold does, and one CTA
// finds the digit of the unit that is the `count`-th; once all units of a bin are taken, what
// follows has nothing to do and returns. Random scores end after four or five passes, equal ones
// after three or four of the draws. (A device-wide sort would need twelve bytes a unit and more;
// CUB's selection leaves open which of equal keys it takes.)
//
// Counts are integers, so the order of atomics does not show. Bytes: 5 a unit and pass, 6 in the
// one that marks. Scratch: two kilobytes.
#include <algorithm>
#include <cub/block/block_scan.cuh>
#include <type_traits>
#include <vector>

#include "kernels/base/math.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/device_rows.h"
#include "kernels/cuda/philox.cuh"

namespace filigree {
namespace {

constexpr int kThreads = 256;
constexpr int kDigitBits = 8;
constexpr int kBins = 1 << kDigitBits;
// Digits of the key from the highest on: the score's, the draw's, the place's.
constexpr int kScoreDigits = 4, kDrawDigits = 8, kPlaceDigits = 8;
constexpr int kDigits = kScoreDigits + kDrawDigits + kPlaceDigits;
constexpr int kUnitBits = 40;  // of the index in a place
constexpr int64_t kCtaUnits = 4096;
constexpr int64_t kMaxCtas = 1056;  // eight for each multiprocessor of an H100

using Count = unsigned long long;

// The key of the unit to find, as far as it is known.
struct Threshold {
  uint64_t draw, draw_mask, place, place_mask;
  uint32_t score, score_mask;
  Count wanted;  // of the units that begin so
  uint32_t found;
};

struct SelectionScratch {
  Threshold threshold;
  Count bins[kBins];
};

// One pool, and what is asked of it.
struct Units {
  const float* scores;  // null: all equal
  uint8_t* marks;
  int64_t count;
  uint64_t seed, stream;
  int pool;
  bool magnitudes;
  uint8_t from;
};

// Orders as scores do; -0 is 0 and NaN comes before everything.
__device__ __forceinline__ uint32_t ScoreKey(const Units& units, int64_t unit) {
  float score = units.scores != nullptr ? units.scores[unit] : 0.0f;
  if (units.magnitudes) score = fabsf(score);
  if (isnan(score)) return 0;
  const uint32_t bits = __float_as_uint(score == 0 ? 0.0f : score);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ uint64_t DrawKey(const Units& units, int64_t unit) {
  return ~RandomBits64(units.seed, units.stream, static_cast<uint64_t>(unit));
}
__device__ __forceinline__ uint64_t PlaceKey(const Units& units, int64_t unit) {
  return ~(static_cast<uint64_t>(units.pool) << kUnitBits | static_cast<uint64_t>(unit));
}

// The digit's value in the unit's key; -1 where the key does not begin as the threshold does.
__device__ __forceinline__ int DigitOf(const Units& units, int64_t unit, const Threshold& threshold,
                                       int digit) {
  const uint32_t score = ScoreKey(units, unit);
  if ((score & threshold.score_mask) != threshold.score) return -1;
  if (digit < kScoreDigits) {
    return (score >> (kDigitBits * (kScoreDigits - 1 - digit))) & (kBins - 1);
  }
  const uint64_t draw = DrawKey(units, unit);
  if ((draw & threshold.draw_mask) != threshold.draw) return -1;
  digit -= kScoreDigits;
  if (digit < kDrawDigits) {
    return (draw >> (kDigitBits * (kDrawDigits - 1 - digit))) & (kBins - 1);
  }
  const uint64_t place = PlaceKey(units, unit);
  if ((place & threshold.place_mask) != threshold.place) return -1;
  digit -= kDrawDigits;
  return (place >> (kDigitBits * (kPlaceDigits - 1 - digit))) & (kBins - 1);
}

__global__ void StartSelectionKernel(Count wanted, SelectionScratch* scratch) {
  scratch->threshold.wanted = wanted;
}

// Counts a digit's values over one pool. Units in a row often share it: a thread counts its run of
// equal ones before it touches the shared bin.
__global__ void __launch_bounds__(kThreads)
    CountDigitsKernel(Units units, int digit, SelectionScratch* scratch) {
  const Threshold threshold = scratch->threshold;
  if (threshold.found) return;
  __shared__ uint32_t bins[kBins];
  for (int bin = threadIdx.x; bin < kBins; bin += kThreads) bins[bin] = 0;
  __syncthreads();
  int run_digit = -1;
  uint32_t run = 0;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t unit = int64_t{blockIdx.x} * kThreads + threadIdx.x; unit < units.count;
       unit += stride) {
    if (units.marks[unit] != units.from) continue;
    const int value = DigitOf(units, unit, threshold, digit);
    if (value != run_digit) {
      if (run_digit >= 0) atomicAdd(&bins[run_digit], run);
      run_digit = value;
      run = 0;
    }
    ++run;
  }
  if (run_digit >= 0) atomicAdd(&bins[run_digit], run);
  __syncthreads();
  for (int bin = threadIdx.x; bin < kBins; bin += kThreads) {
    if (bins[bin] > 0) atomicAdd(&scratch->bins[bin], Count{bins[bin]});
  }
}

// One CTA, a thread a bin, the highest first: the bin that holds the wanted unit is the threshold's
// digit. Clears the bins.
__global__ void __launch_bounds__(kBins) FindDigitKernel(int digit, SelectionScratch* scratch) {
  using Scan = cub::BlockScan<Count, kBins>;
  __shared__ typename Scan::TempStorage storage;
  Threshold* threshold = &scratch->threshold;
  const bool found = threshold->found;
  const Count wanted = threshold->wanted;
  const int bin = kBins - 1 - static_cast<int>(threadIdx.x);
  const Count here = scratch->bins[bin];
  scratch->bins[bin] = 0;
  Count before = 0, all = 0;
  Scan(storage).ExclusiveSum(here, before, all);
  if (found) return;
  if (all <= wanted) {  // only at the first digit: there are no more than that
    if (threadIdx.x == 0) threshold->found = 1;
    return;
  }
  if (before >= wanted || before + here < wanted) return;
  threshold->wanted = wanted - before;
  threshold->found = before + here == wanted;
  const auto extend = [&](auto* key, auto* mask, int digits, int index) {
    using Word = std::remove_reference_t<decltype(*key)>;
    const int shift = kDigitBits * (digits - 1 - index);
    *key |= static_cast<Word>(bin) << shift;
    *mask |= static_cast<Word>(kBins - 1) << shift;
  };
  if (digit < kScoreDigits) {
    extend(&threshold->score, &threshold->score_mask, kScoreDigits, digit);
  } else if (digit < kScoreDigits + kDrawDigits) {
    extend(&threshold->draw, &threshold->draw_mask, kDrawDigits, digit - kScoreDigits);
  } else {
    extend(&threshold->place, &threshold->place_mask, kPlaceDigits,
           digit - kScoreDigits - kDrawDigits);
  }
}

// Whether the unit is at or above the threshold, as far as that is known: what begins as it does
// was all taken.
__device__ __forceinline__ bool Reaches(const Units& units, int64_t unit,
                                        const Threshold& threshold) {
  const uint32_t score = ScoreKey(units, unit) & threshold.score_mask;
  if (score != threshold.score) return score > threshold.score;
  if (threshold.draw_mask == 0) return true;
  const uint64_t draw = DrawKey(units, unit) & threshold.draw_mask;
  if (draw != threshold.draw) return draw > threshold.draw;
  return (PlaceKey(units, unit) & threshold.place_mask) >= threshold.place;
}

__global__ void __launch_bounds__(kThreads)
    MarkSelectedKernel(Units units, bool none, uint8_t chosen, uint8_t rest,
                       const SelectionScratch* scratch, Count* chosen_count) {
  const Threshold threshold = scratch->threshold;
  int count = 0;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t unit = int64_t{blockIdx.x} * kThreads + threadIdx.x; unit < units.count;
       unit += stride) {
    uint8_t mark = units.marks[unit];
    if (mark == units.from) {
      mark = !none && Reaches(units, unit, threshold) ? chosen : rest;
      units.marks[unit] = mark;
    }
    count += mark == chosen;
  }
  if (chosen_count == nullptr) return;
  count = __reduce_add_sync(0xffffffffu, count);
  if (threadIdx.x % 32 == 0 && count > 0) atomicAdd(chosen_count, static_cast<Count>(count));
}

unsigned CtasFor(int64_t units) {
  return static_cast<unsigned>(std::clamp<int64_t>(CeilDiv(units, kCtaUnits), 1, kMaxCtas));
}

std::vector<Units> UnitsOf(const SelectHighestArgs& args) {
  std::vector<Units> pools;
  CHECK_LT(static_cast<int64_t>(args.pools.size()), int64_t{1} << (64 - kUnitBits));
  for (const SelectionPool& pool : args.pools) {
    const int64_t count = pool.marks.size();
    CHECK_LE(count, int64_t{1} << kUnitBits);
    pools.push_back(
        {.scores = pool.scores.empty() ? nullptr : AsElements<float>(pool.scores, count, "scores"),
         .marks = AsElements<uint8_t>(pool.marks, count, "marks"),
         .count = count,
         .seed = args.seed,
         .stream = pool.stream,
         .pool = static_cast<int>(pools.size()),
         .magnitudes = args.magnitudes,
         .from = args.from});
  }
  return pools;
}

}  // namespace

void CudaBackend::SelectHighest(const SelectHighestArgs& args, Stream& stream) {
  const cudaStream_t native = NativeStream(stream);
  const std::vector<Units> pools = UnitsOf(args);
  auto* scratch = reinterpret_cast<SelectionScratch*>(Workspace(sizeof(SelectionScratch)));
  CUDA_CHECK(cudaMemsetAsync(scratch, 0, sizeof(SelectionScratch), native));
  const Count wanted = static_cast<Count>(std::max<int64_t>(args.count, 0));
  StartSelectionKernel<<<1, 1, 0, native>>>(wanted, scratch);
  const bool scored = std::any_of(pools.begin(), pools.end(),
                                  [](const Units& units) { return units.scores != nullptr; });
  for (int digit = scored ? 0 : kScoreDigits; wanted > 0 && digit < kDigits; ++digit) {
    for (const Units& units : pools) {
      CountDigitsKernel<<<CtasFor(units.count), kThreads, 0, native>>>(units, digit, scratch);
    }
    FindDigitKernel<<<1, kBins, 0, native>>>(digit, scratch);
  }
  Count* counts = nullptr;
  if (!args.chosen_counts.empty()) {
    const auto size = static_cast<int64_t>(pools.size());
    counts =
        reinterpret_cast<Count*>(AsElements<int64_t>(args.chosen_counts, size, "chosen_counts"));
    device_.ZeroAsync(args.chosen_counts, stream);
  }
  for (size_t p = 0; p < pools.size(); ++p) {
    MarkSelectedKernel<<<CtasFor(pools[p].count), kThreads, 0, native>>>(
        pools[p], wanted == 0, args.chosen, args.rest, scratch,
        counts != nullptr ? counts + p : nullptr);
  }
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace filigree

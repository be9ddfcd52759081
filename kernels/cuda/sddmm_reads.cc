#include "kernels/cuda/sddmm_reads.h"

#include <algorithm>
#include <tuple>

namespace filigree {
namespace {

// A worker's pass over tokens of one operand's chunk. `lead`: its first step's token less the time,
// both in steps; workers of one lead are at the same tokens at all times.
struct Visit {
  int chunk, lead, begin, end;
};

std::vector<Visit> ListVisits(const SddmmPlan& plan, const std::vector<SddmmUnit>& units,
                              int a_chunks) {
  std::vector<Visit> visits;
  for (const std::vector<SddmmSlice>& list : plan.lists) {
    int time = 0;
    for (const SddmmSlice& slice : list) {
      const SddmmUnit& unit = units[slice.unit];
      // Chunks of X have even numbers, of dY odd ones.
      const auto visit = [&](int chunk, int is_output_grad) {
        visits.push_back({2 * chunk + is_output_grad, slice.begin - time, slice.begin,
                          slice.begin + slice.steps});
      };
      for (int c = 0; c < a_chunks; ++c) visit(unit.a_chunk + c, unit.by_rows);
      for (int slot = 0; slot < 8; ++slot) {
        if (slot % 4 < unit.chunk_count[slot / 4]) visit(unit.b_chunk[slot], 1 - unit.by_rows);
      }
      time += slice.steps;
    }
  }
  return visits;
}

}  // namespace

int64_t SddmmReadBytes(const SddmmPlan& plan, const std::vector<SddmmUnit>& units, int a_chunks,
                       int kept_steps) {
  std::vector<Visit> visits = ListVisits(plan, units, a_chunks);
  std::sort(visits.begin(), visits.end(), [](const Visit& a, const Visit& b) {
    return std::tie(a.chunk, a.lead, a.begin) < std::tie(b.chunk, b.lead, b.begin);
  });
  int64_t steps = 0;
  for (size_t first = 0, end = 0; first < visits.size(); first = end) {
    // Those that go together, and the tokens that they cover.
    while (end < visits.size() && visits[end].chunk == visits[first].chunk &&
           visits[end].lead <= visits[first].lead + kept_steps) {
      ++end;
    }
    std::sort(visits.begin() + first, visits.begin() + end,
              [](const Visit& a, const Visit& b) { return a.begin < b.begin; });
    int reached = 0;
    for (size_t v = first; v < end; ++v) {
      steps += std::max(0, visits[v].end - std::max(reached, visits[v].begin));
      reached = std::max(reached, visits[v].end);
    }
  }
  return steps * kChunk * kChunk * 2;
}

}  // namespace filigree

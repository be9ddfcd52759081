#include "trainer/plan_move.h"

#include <algorithm>
#include <functional>
#include <map>
#include <set>
#include <string>

#include "kernels/base/block_quantization.h"
#include "trainer/checkpoint/merged_weight.h"
#include "trainer/model/model.h"
#include "trainer/state_move.h"
#include "trainer/topology/plan.h"

namespace filigree {
namespace {

// One end of a move.
struct End {
  const std::vector<Parameter>& parameters;
  int phase = 0;
};

using Remaps = std::function<bool(const Parameter& from, const Parameter& to)>;

class Moves {
 public:
  Moves(const RunSpec& run, End from, End to, bool moments, int ranks, const Device& device)
      : run_(run),
        from_(from),
        to_(to),
        moments_(moments),
        sharded_(run.zero_stage == 1 && ranks > 1),
        values_in_f32_(device.compute_dtype() == DType::kF32) {}

  int64_t Bytes(const Remaps& remaps) const {
    MoveSizes sizes;
    for (const Parameter& to : to_.parameters) {
      const WeightParts parts = FindWeightParts(from_.parameters, to.name);
      // Merged on the host.
      if (parts.has_factors() && !FindWeightParts(to_.parameters, to.name).has_factors()) continue;
      if (parts.weight < 0) continue;
      const Parameter& from = from_.parameters[parts.weight];
      const int64_t target = to.segment_count();
      if (!HoldsAll(from.segment_count())) {
        sizes.gathered = std::max(sizes.gathered, from.segment_count());
      }
      if (remaps(from, to)) sizes.remapped = std::max(sizes.remapped, target);
      if (FormatOf(to_).bf16 && values_in_f32_) sizes.halves = std::max(sizes.halves, target);
    }
    return MoveBytes(sizes);
  }

 private:
  const StateFormat& FormatOf(End end) const { return run_.phases[end.phase].optimizer.state; }

  // Whether a rank has all arrays of a segment that move whole, and in F32.
  bool HoldsAll(int64_t count) const {
    const StateFormat& format = FormatOf(from_);
    if (sharded_ || (format.bf16 && !values_in_f32_)) return false;
    if (!moments_) return true;
    if (TracksAges(run_, to_.phase) && !TracksAges(run_, from_.phase)) return false;
    return !format.bf16 && !(format.eight_bit_moments && count >= kSmallestQuantized);
  }

  const RunSpec& run_;
  const End from_, to_;
  const bool moments_, sharded_, values_in_f32_;
};

// The weights of a phase whose topology moves, by name.
std::set<std::string> MovingWeights(const RunSpec& run, int index) {
  std::set<std::string> names;
  for (const TopologyEntry& entry : EntriesOf(LinearSpecs(run.model), run.phases[index])) {
    if (!MovesTopology(*entry.rule)) continue;
    for (const LinearSpec& linear : entry.linears) names.insert(linear.name + ".weight");
  }
  return names;
}

}  // namespace

int64_t PlanEntryMoveMemory(const std::vector<Parameter>& from, const std::vector<Parameter>& to,
                            const RunSpec& run, int index, int ranks, const Device& device) {
  std::map<std::string, SparseLayout> layouts;
  for (const Parameter& parameter : from) layouts.emplace(parameter.name, parameter.layout);
  const auto inherited = InheritedLayouts(LinearSpecs(run.model), run.phases[index], layouts);
  const std::set<std::string> moved = MovingWeights(run, index - 1);
  const bool moments = run.phases[index].moments == Moments::kKeep;
  return Moves(run, {from, index - 1}, {to, index}, moments, ranks, device)
      .Bytes([&](const Parameter& before, const Parameter& after) {
        if (inherited.contains(after.name)) return false;
        return !(before.layout == after.layout) || moved.contains(after.name);
      });
}

int64_t PlanUpdateMoveMemory(const std::vector<Parameter>& parameters, const RunSpec& run,
                             int index, int ranks, const Device& device) {
  const std::set<std::string> moving = MovingWeights(run, index);
  const End end = {parameters, index};
  return Moves(run, end, end, /*moments=*/true, ranks, device)
      .Bytes([&](const Parameter&, const Parameter& to) { return moving.contains(to.name); });
}

int64_t PlanCompactionMoveMemory(const std::vector<Parameter>& parameters, const RunSpec& run,
                                 int index, int ranks, const Device& device) {
  const End end = {parameters, index};
  return Moves(run, end, end, /*moments=*/true, ranks, device)
      .Bytes([](const Parameter&, const Parameter&) { return true; });
}

}  // namespace filigree

#include "trainer/pruning/ramp.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "kernels/base/check.h"
#include "kernels/base/math.h"
#include "trainer/model/decoder_spec.h"
#include "trainer/pruning/compaction.h"

namespace filigree {
namespace {

// Whether unit a goes after b: by score, ties by number.
struct Later {
  std::span<const double> scores;
  bool operator()(int64_t a, int64_t b) const {
    const double x = scores[static_cast<size_t>(a)], y = scores[static_cast<size_t>(b)];
    return x != y ? x > y : a > b;
  }
};

// The units of each set, the next to go on top of a heap, and how many live.
class Chooser {
 public:
  Chooser(const ModelSpec& model, const UnitTable& table, std::span<const double> scores,
          const std::vector<bool>& stays, const PruningSpec& spec)
      : model_(model), table_(table), later_{scores}, spec_(spec) {
    for (const UnitSet& set : table.sets()) {
      std::vector<int64_t> units;
      for (int64_t unit = set.first; unit < set.first + set.count; ++unit) {
        if (stays[static_cast<size_t>(unit)]) units.push_back(unit);
      }
      live_.push_back(static_cast<int64_t>(units.size()));
      std::make_heap(units.begin(), units.end(), later_);
      heaps_.push_back(std::move(units));
    }
    for (int kind = 0; kind < kUnitKinds; ++kind) Measure(static_cast<UnitKind>(kind));
  }

  // Parameters of what lives, or of what would be stored of it.
  int64_t Parameters(bool aligned) const {
    std::vector<int64_t> counts = live_;
    for (size_t i = 0; aligned && i < counts.size(); ++i) {
      counts[i] = AlignedCount(table_.sets()[i], counts[i], spec_);
    }
    return CountParameters(ModelOf(model_, table_, counts));
  }

  // Whether some set that may give a unit is between two aligned sizes, or behind other layers.
  bool AnyBegun() const {
    for (size_t i = 0; i < live_.size(); ++i) {
      if (Eligible(i) && Begun(i)) return true;
    }
    return false;
  }

  // The unit to go next, taken; -1: none may.
  int64_t Take(bool begun_only) {
    int best = -1;
    for (size_t i = 0; i < live_.size(); ++i) {
      if (!Eligible(i) || (begun_only && !Begun(i))) continue;
      if (best < 0 || later_(heaps_[best].front(), heaps_[i].front())) best = static_cast<int>(i);
    }
    if (best < 0) return -1;
    std::vector<int64_t>& heap = heaps_[static_cast<size_t>(best)];
    std::pop_heap(heap.begin(), heap.end(), later_);
    const int64_t unit = heap.back();
    heap.pop_back();
    --live_[static_cast<size_t>(best)];
    Measure(table_.sets()[best].kind);
    return unit;
  }

 private:
  // Of the sets of one kind.
  struct Extent {
    int64_t smallest = 0, largest = 0;
  };
  const Extent& ExtentOf(UnitKind kind) const { return extents_[static_cast<size_t>(kind)]; }
  void Measure(UnitKind kind) {
    Extent extent = {.smallest = std::numeric_limits<int64_t>::max()};
    for (size_t i = 0; i < live_.size(); ++i) {
      if (table_.sets()[i].kind != kind) continue;
      extent.smallest = std::min(extent.smallest, live_[i]);
      extent.largest = std::max(extent.largest, live_[i]);
    }
    extents_[static_cast<size_t>(kind)] = extent;
  }
  // What a set may come down to at this point of the ramp.
  int64_t Level(size_t set) const {
    const UnitKind kind = table_.sets()[set].kind;
    const int64_t alignment = spec_.of(kind).alignment;
    const int64_t floor = AlignUp(spec_.of(kind).minimum, alignment);
    if (!spec_.even_layers) return floor;
    return std::max(floor, (ExtentOf(kind).largest - 1) / alignment * alignment);
  }
  bool Eligible(size_t set) const {
    return spec_.of(table_.sets()[set].kind).enabled && live_[set] > Level(set);
  }
  bool Begun(size_t set) const {
    const UnitKind kind = table_.sets()[set].kind;
    if (live_[set] % spec_.of(kind).alignment != 0 && live_[set] < table_.sets()[set].count) {
      return true;
    }
    // Others of the kind are below the largest: the level has been opened.
    return spec_.even_layers && ExtentOf(kind).smallest < ExtentOf(kind).largest;
  }

  const ModelSpec& model_;
  const UnitTable& table_;
  const Later later_;
  const PruningSpec& spec_;
  std::vector<int64_t> live_;
  std::vector<std::vector<int64_t>> heaps_;
  std::array<Extent, kUnitKinds> extents_;
};

}  // namespace

int64_t CountParameters(const ModelSpec& model) {
  const FamilyTraits& traits = TraitsOf(model.family);
  const int64_t norm = model.width * (traits.norm == NormKind::kLayer ? 2 : 1);
  int64_t count = model.vocab_size * model.width * (model.tied_head ? 1 : 2);
  if (!traits.rope) count += model.max_positions * model.width;
  count += (2 * model.layers + 1) * norm;
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    const LayerShape shape = model.ShapeOf(layer);
    const int64_t queries = shape.heads * model.head_size, keys = shape.kv_heads * model.head_size;
    const int64_t widening = (traits.gated ? 2 : 1) * shape.feed_forward;
    count += model.width * (2 * queries + 2 * keys + widening + shape.feed_forward);
    if (traits.biases) count += queries + 2 * keys + widening + 2 * model.width;
  }
  return count;
}

ModelSpec ModelOf(const ModelSpec& model, const UnitTable& table, std::span<const int64_t> counts) {
  ModelSpec smaller = model;
  smaller.layer_shapes.clear();
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    smaller.layer_shapes.push_back(model.ShapeOf(layer));
  }
  for (size_t i = 0; i < counts.size(); ++i) {
    const UnitSet& set = table.sets()[i];
    if (set.kind == UnitKind::kStem) {
      smaller.width = counts[i];
      continue;
    }
    LayerShape& shape = smaller.layer_shapes[static_cast<size_t>(set.layer)];
    if (set.kind == UnitKind::kFeedForward) {
      shape.feed_forward = counts[i];
    } else {
      shape.heads = shape.heads / shape.kv_heads * counts[i];
      shape.kv_heads = counts[i];
    }
  }
  return smaller;
}

Ramp::Ramp(const PruningSpec& spec, const Timeline& timeline, int64_t initial_parameters)
    : timeline_(timeline), initial_(initial_parameters), target_(spec.target_parameters) {
  curve_.curve = spec.curve;
  curve_.clock = spec.clock;
  curve_.begin = spec.begin;
  curve_.end = spec.end;
  const bool progressive = spec.removal == PruningSpec::Removal::kProgressive;
  curve_.update_interval = progressive ? std::max(spec.interval, spec.shrink_steps) : spec.interval;
  curve_.initial_sparsity = 0;
  curve_.sparsity = std::clamp(
      1 - static_cast<double>(target_) / static_cast<double>(initial_parameters), 0.0, 1.0);
  events_ = EventsOf(curve_, timeline);
  constexpr double kLengths = 3;
  first_gathered_ =
      events_.first - static_cast<int64_t>(std::ceil(kLengths / (1 - spec.smoothing)));
}

int64_t Ramp::AllowedAt(int64_t step) const {
  if (step >= last_step()) return target_;
  const double share = 1 - CurveSparsity(curve_, timeline_, step);
  return std::max(target_, static_cast<int64_t>(std::ceil(share * static_cast<double>(initial_))));
}

bool Ramp::IsEvent(int64_t step) const {
  return step >= events_.first && (step - events_.first) % events_.interval == 0;
}

int64_t Ramp::EventFrom(int64_t step) const {
  constexpr int64_t kFirstWithScores = 2;
  const int64_t from = std::max({step, events_.first, kFirstWithScores});
  return events_.first + CeilDiv(from - events_.first, events_.interval) * events_.interval;
}

std::vector<int64_t> ChooseUnits(const ModelSpec& model, const UnitTable& table,
                                 std::span<const double> scores, const std::vector<bool>& stays,
                                 const PruningSpec& spec, int64_t allowed, bool finishing) {
  Chooser chooser(model, table, scores, stays, spec);
  std::vector<int64_t> chosen;
  const auto most = spec.units_per_event > 0 ? static_cast<size_t>(spec.units_per_event)
                                             : std::numeric_limits<size_t>::max();
  while (chosen.size() < most) {
    const bool begun = finishing && chooser.AnyBegun();
    const bool too_large = chooser.Parameters(finishing) > allowed;
    // Layers that are to be even are made so even where the size has come out.
    if (!too_large && !(begun && spec.even_layers)) break;
    const int64_t unit = chooser.Take(begun);
    if (unit < 0) break;
    chosen.push_back(unit);
  }
  return chosen;
}

}  // namespace filigree

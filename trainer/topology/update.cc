#include "trainer/topology/update.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "kernels/base/math.h"
#include "kernels/base/rng.h"
#include "kernels/sparse/unit_layout.h"

namespace filigree {
namespace {

// What a selection within one event is for; part of its tie-break.
enum Purpose : uint64_t { kPrune, kFloor, kFill, kDrop, kRegrow, kPurposes };

// Marks of units.
enum Mark : uint8_t {
  kDead = 0,
  kLive = 1,
  kDropped = 2,  // by this event: does not grow again
  kKept = 3,     // live, and beyond the threshold's reach
};

// Where weights' arrays begin in shared memory, in elements.
constexpr int64_t kArrayAlignment = 64;

bool SharesThreshold(const SparsitySpec& spec) {
  const Distribution* row = FindDistribution(spec.distribution);
  CHECK(row != nullptr) << spec.distribution;
  return row->counts == nullptr;
}

// Units that memory for all weights at once holds, or for one after the other.
int64_t UnitsHeld(std::span<const WeightShape> shapes, bool at_once) {
  int64_t held = 0;
  for (const WeightShape& shape : shapes) {
    const int64_t units = AlignUp(shape.units, kArrayAlignment);
    held = at_once ? held + units : std::max(held, units);
  }
  return held;
}

class TopologyEvent {
 public:
  TopologyEvent(std::span<const TopologyWeight> weights, const SparsitySpec& spec, uint64_t seed,
                int64_t step, ScoreSource& scores, Backend& backend, Stream& stream)
      : weights_(weights),
        spec_(spec),
        seed_(seed),
        step_(static_cast<uint64_t>(step)),
        at_once_(SharesThreshold(spec)),
        source_(scores),
        backend_(backend),
        stream_(stream) {
    for (const TopologyWeight& weight : weights) shapes_.push_back(weight.shape);
    const int64_t held = UnitsHeld(shapes_, at_once_);
    scores_ = backend.device().Allocate(static_cast<size_t>(held) * sizeof(float), "scratch");
    marks_ = backend.device().Allocate(static_cast<size_t>(held), "scratch");
  }

  std::vector<std::unique_ptr<PreparedLayout>> TakePrepared() { return std::move(prepared_); }

  std::vector<SparseLayout> Run(const TopologyAction& action, Growth growth) {
    std::vector<SparseLayout> layouts;
    if (at_once_) {
      int64_t begin = 0;
      for (size_t i = 0; i < weights_.size(); ++i) {
        pools_.push_back(Open(i, begin));
        begin += AlignUp(shapes_[i].units, kArrayAlignment);
      }
      PruneUnderOneThreshold(action.sparsity);
      for (Pool& pool : pools_) layouts.push_back(Finish(pool, action.drop_fraction));
      return layouts;
    }
    const std::vector<int64_t> counts =
        FindDistribution(spec_.distribution)->counts(shapes_, action.sparsity);
    for (size_t i = 0; i < weights_.size(); ++i) {
      Pool pool = Open(i, 0);
      ReachCount(counts[i], growth, &pool);
      layouts.push_back(Finish(pool, action.drop_fraction));
    }
    return layouts;
  }

 private:
  // A weight while it is worked on.
  struct Pool {
    size_t weight = 0;
    ConstTensorView keep_scores = {};  // [units], or empty: all equal
    TensorView marks = {};             // [units]
    int64_t live = 0;
  };

  Pool Open(size_t i, int64_t begin) {
    const int64_t units = shapes_[i].units;
    Pool pool = {.weight = i,
                 .marks = marks_.View(DType::kU8, units, static_cast<size_t>(begin)),
                 .live = StoredUnitCount(weights_[i].layout)};
    const auto prepared = backend_.PrepareLayout(weights_[i].layout);
    backend_.MarkStored({.weight = prepared.get(), .marks = pool.marks}, stream_);
    const TensorView memory =
        scores_.View(DType::kF32, units, static_cast<size_t>(begin) * sizeof(float));
    // What the event grows before it drops has this score.
    backend_.device().ZeroAsync(memory, stream_);
    pool.keep_scores = source_.Keep(i, *prepared, memory);
    stream_.Synchronize();  // `prepared` is read until then
    return pool;
  }

  SelectionPool Selection(const Pool& pool, ConstTensorView scores, Purpose purpose) const {
    return {.scores = scores,
            .marks = pool.marks,
            .stream = RngStream("topology", weights_[pool.weight].name, Draw(purpose))};
  }
  uint64_t Draw(Purpose purpose) const { return step_ * kPurposes + purpose; }

  // Of what is live, `count` of highest score become `kept`, the others `rest`.
  void Keep(const Pool& pool, int64_t count, Purpose purpose, Mark kept, Mark rest) {
    const SelectionPool selection = Selection(pool, pool.keep_scores, purpose);
    backend_.SelectHighest({.pools = {&selection, 1},
                            .count = count,
                            .from = kLive,
                            .chosen = kept,
                            .rest = rest,
                            .seed = seed_},
                           stream_);
  }

  void Grow(const Pool& pool, int64_t count, Purpose purpose) {
    const SelectionPool selection = Selection(pool, source_.Grow(pool.weight), purpose);
    backend_.SelectHighest({.pools = {&selection, 1},
                            .count = count,
                            .magnitudes = true,
                            .from = kDead,
                            .chosen = kLive,
                            .rest = kDead,
                            .seed = seed_},
                           stream_);
  }

  void ReachCount(int64_t count, Growth growth, Pool* pool) {
    if (count < pool->live) {
      Keep(*pool, count, kPrune, kLive, kDead);
    } else if (count > pool->live && growth != Growth::kNone) {
      Grow(*pool, count - pool->live, kFill);
    } else {
      return;
    }
    pool->live = count;
  }

  // Each weight's floor first, by its own best; the rest by one threshold over all.
  void PruneUnderOneThreshold(double sparsity) {
    int64_t total = 0, stored = 0, reserved = 0;
    for (const Pool& pool : pools_) {
      total += shapes_[pool.weight].units;
      stored += pool.live;
    }
    const int64_t target = std::llround((1 - sparsity) * static_cast<double>(total));
    if (target >= stored) return;
    const std::vector<int64_t> floors = GlobalFloors(shapes_, spec_);
    std::vector<SelectionPool> selections;
    for (const Pool& pool : pools_) {
      Keep(pool, floors[pool.weight], kFloor, kKept, kLive);
      reserved += std::min(floors[pool.weight], pool.live);
      selections.push_back(Selection(pool, pool.keep_scores, kPrune));
    }
    std::vector<int64_t> kept(pools_.size());
    const auto count = static_cast<int64_t>(kept.size());
    const DeviceBuffer counts =
        backend_.device().Allocate(kept.size() * sizeof(int64_t), "scratch");
    SelectHighestArgs args = {.pools = selections, .count = target - reserved, .seed = seed_};
    args.from = kLive, args.chosen = kKept, args.rest = kDead;
    args.chosen_counts = counts.View(DType::kI64, count);
    backend_.SelectHighest(args, stream_);
    backend_.device().CopyAsync(TensorView(kept.data(), DType::kI64, {count}), args.chosen_counts,
                                stream_);
    stream_.Synchronize();
    for (Pool& pool : pools_) {
      pool.live = kept[pool.weight];
      const SelectionPool all = Selection(pool, {}, kPrune);
      backend_.SelectHighest({.pools = {&all, 1},
                              .count = pool.live,
                              .from = kKept,
                              .chosen = kLive,
                              .rest = kLive},
                             stream_);
    }
  }

  // Those that the pruning above removed may grow again, those that this drops may not.
  SparseLayout Finish(const Pool& pool, double drop_fraction) {
    const TopologyWeight& weight = weights_[pool.weight];
    const int64_t wanted = std::llround(drop_fraction * static_cast<double>(pool.live));
    const int64_t moved = std::min(wanted, weight.shape.units - pool.live);
    if (moved > 0) {
      Keep(pool, pool.live - moved, kDrop, kLive, kDropped);
      Grow(pool, moved, kRegrow);
    }
    prepared_.push_back(backend_.LayoutOfMarks(weight.layout, pool.marks, stream_));
    const SparseLayout& proposed = prepared_.back()->layout();
    return proposed == weight.layout ? weight.layout : proposed;
  }

  std::span<const TopologyWeight> weights_;
  const SparsitySpec& spec_;
  const uint64_t seed_, step_;
  const bool at_once_;
  ScoreSource& source_;
  Backend& backend_;
  Stream& stream_;
  std::vector<WeightShape> shapes_;
  DeviceBuffer scores_, marks_;
  std::vector<Pool> pools_;  // of all weights, under one threshold
  std::vector<std::unique_ptr<PreparedLayout>> prepared_;  // of what is proposed
};

}  // namespace

std::vector<SparseLayout> ProposeLayouts(std::span<const TopologyWeight> weights,
                                         const SparsitySpec& spec, const TopologyAction& action,
                                         Growth growth, uint64_t seed, int64_t step,
                                         ScoreSource& scores, Backend& backend, Stream& stream,
                                         std::vector<std::unique_ptr<PreparedLayout>>* prepared) {
  TopologyEvent event(weights, spec, seed, step, scores, backend, stream);
  std::vector<SparseLayout> layouts = event.Run(action, growth);
  if (prepared) std::ranges::move(event.TakePrepared(), std::back_inserter(*prepared));
  return layouts;
}

int64_t ProposalBytes(std::span<const WeightShape> shapes, const SparsitySpec& spec) {
  const bool at_once = SharesThreshold(spec);
  const int64_t counts = at_once ? static_cast<int64_t>(shapes.size() * sizeof(int64_t)) : 0;
  return UnitsHeld(shapes, at_once) * static_cast<int64_t>(sizeof(float) + sizeof(uint8_t)) +
         counts;
}

TopologyChange CountChange(const SparseLayout& before, const SparseLayout& after) {
  if (before == after) return {};
  const int64_t kept = CommonCells(before, after);
  return {.dropped = before.nonzero_count() - kept, .grown = after.nonzero_count() - kept};
}

}  // namespace filigree

#include "trainer/optimizer.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace filigree {
namespace {

constexpr size_t kScaleOffset = sizeof(double);

// Joins pieces that have nothing but padding between them, in the flat buffer and in the shard's
// own. A run keeps the segment of its first piece.
template <typename MayJoin>
std::vector<OwnedRange> JoinRuns(const std::vector<OwnedRange>& pieces, const MayJoin& may_join) {
  std::vector<OwnedRange> runs;
  for (const OwnedRange& piece : pieces) {
    if (!runs.empty() && may_join(runs.back(), piece)) {
      OwnedRange& run = runs.back();
      const int64_t end = piece.flat_begin + piece.count - run.flat_begin;
      const bool padding_only = piece.flat_begin - run.flat_begin - run.count < kSegmentAlignment;
      if (padding_only && piece.shard_begin + piece.count - run.shard_begin == end) {
        run.count = end;
        continue;
      }
    }
    runs.push_back(piece);
  }
  return runs;
}

}  // namespace

int64_t UpdatesSinceFreshMoments(const RunSpec& run, int phase, int64_t step) {
  int fresh = phase;
  while (fresh > 0 && run.phases[fresh].moments == Moments::kKeep) --fresh;
  const PhaseSpec& from = run.phases[fresh];
  return step - from.first_step + 1 + std::max<int64_t>(from.rewind_step, 0);
}

int64_t Optimizer::ScratchBytes() { return kScaleOffset + sizeof(float); }

Optimizer::Optimizer(const std::vector<Parameter>& parameters, std::vector<int64_t> growth_ramps,
                     uint64_t rounding_seed, FlatBuffer& buffer, GradientExchange& exchange,
                     Backend& backend)
    : parameters_(parameters),
      growth_ramps_(std::move(growth_ramps)),
      rounding_seed_(rounding_seed),
      buffer_(buffer),
      exchange_(exchange),
      backend_(backend),
      scalars_(backend.device().Allocate(ScratchBytes(), "scratch")),
      updated_(backend.device().NewEvent()),
      fetched_(backend.device().NewEvent()),
      host_sum_(backend.device().AllocatePinned(sizeof(double), "pinned")) {
  const auto decays = [&](const OwnedRange& range) { return parameters[range.segment].decay; };
  runs_ = JoinRuns(buffer.owned(), [&](const OwnedRange& a, const OwnedRange& b) {
    return BucketOf(a) == BucketOf(b);
  });
  update_runs_ = JoinRuns(buffer.owned(), [&](const OwnedRange& a, const OwnedRange& b) {
    if (BucketOf(a) != BucketOf(b)) return false;
    // A code of zero is no number zero: padding stays out.
    if (buffer.format().eight_bit_moments) return false;
    const bool ramps_alike = growth_ramps_[a.segment] == growth_ramps_[b.segment];
    return decays(a) == decays(b) && (ramps_alike || !buffer.has_born());
  });
  if (!buffer.format().bf16) return;
  auto piece = buffer.owned().begin();
  for (const OwnedRange& run : update_runs_) {
    rounded_.emplace_back();
    const int64_t end = run.flat_begin + run.count;
    for (; piece != buffer.owned().end() && piece->flat_begin < end; ++piece) {
      rounded_.back().push_back(*piece);
    }
  }
}

// Buckets that left earlier are summed while later ones travel.
void Optimizer::SumSquares(Stream& stream) {
  TensorView sum = scalars_.View(DType::kF64, 1);
  backend_.device().ZeroAsync(sum, stream);
  const auto add = [&](TensorView grads) {
    backend_.SumOfSquares({.in = grads, .out = sum}, stream);
  };
  auto waiting = static_cast<int>(buffer_.layout().buckets().size());  // for buckets below this
  if (whole_gradients_) {
    for (size_t i = 0; i < parameters_.size(); ++i) add(buffer_.Grads(static_cast<int>(i)));
  } else {
    for (auto run = runs_.rbegin(); run != runs_.rend(); ++run) {
      while (waiting > BucketOf(*run)) exchange_.WaitGrads(--waiting, stream);
      add(exchange_.SummedGrads(*run));
    }
  }
  while (waiting > 0) exchange_.WaitGrads(--waiting, stream);
}

void Optimizer::FetchSum(Stream& stream) {
  if (!whole_gradients_) exchange_.SumOverShards(scalars_.View(DType::kF64, 1), stream);
  backend_.device().CopyAsync(host_sum_.View(DType::kF64, 1), scalars_.View(DType::kF64, 1),
                              stream);
  fetched_->Record(stream);
}

double Optimizer::NormOfSum() {
  fetched_->Synchronize();
  return std::sqrt(*host_sum_.View(DType::kF64, 1).As<double>());
}

double Optimizer::GradNorm(Stream& stream) {
  SumSquares(stream);
  FetchSum(stream);
  return NormOfSum();
}

Optimizer::Result Optimizer::Step(const OptimizerSpec& spec, double lr, int64_t step,
                                  Stream& stream) {
  SumSquares(stream);
  FetchSum(stream);
  // The device goes on by itself: the host learns the norm while values are updated, or are not,
  // where it is not finite.
  backend_.ClipScale({.sum_of_squares = scalars_.View(DType::kF64, 1),
                      .scale = scalars_.View(DType::kF32, 1, kScaleOffset),
                      .clip_norm = spec.clip_norm},
                     stream);
  UpdateAll({spec, lr, step}, stream);
  Result result;
  result.grad_norm = NormOfSum();
  result.skipped = !std::isfinite(result.grad_norm);
  if (result.skipped) {
    exchange_.WaitAllValues(stream);  // what nobody will use anew
  } else {
    last_norm_ = result.grad_norm;
  }
  return result;
}

void Optimizer::UpdateAll(const UpdateArgs& update, Stream& stream) {
  // Every rank gathers every bucket, whether it owns anything of it or not.
  auto run = update_runs_.begin();
  const auto buckets = static_cast<int>(buffer_.layout().buckets().size());
  for (int bucket = 0; bucket < buckets; ++bucket) {
    for (; run != update_runs_.end() && BucketOf(*run) == bucket; ++run) {
      Update(*run, update, stream);
    }
    updated_->Record(stream);
    exchange_.StartGatherValues(bucket, *updated_);
  }
}

void Optimizer::CopyScale(const OptimizerSpec& spec, double norm, Stream& stream) {
  const bool clip = spec.clip_norm > 0 && norm > spec.clip_norm;
  host_scale_ = clip ? static_cast<float>(spec.clip_norm / norm) : 1.0f;
  backend_.device().CopyAsync(scalars_.View(DType::kF32, 1, kScaleOffset),
                              ConstTensorView(&host_scale_, DType::kF32, {1}), stream);
}

void Optimizer::BeginPieces(const std::optional<UpdateArgs>& update, Stream& stream) {
  CHECK(!whole_gradients_);
  pieces_ = update;
  backend_.device().ZeroAsync(scalars_.View(DType::kF64, 1), stream);
  if (update) CopyScale(update->spec, last_norm_, stream);
}

void Optimizer::UpdatePiece(int bucket, Stream& stream) {
  for (const OwnedRange& run : runs_) {
    if (BucketOf(run) != bucket) continue;
    backend_.SumOfSquares({.in = exchange_.SummedGrads(run), .out = scalars_.View(DType::kF64, 1)},
                          stream);
  }
  for (const OwnedRange& run : update_runs_) {
    if (pieces_ && BucketOf(run) == bucket) Update(run, *pieces_, stream);
  }
}

Optimizer::Result Optimizer::EndPieces(Stream& stream) {
  FetchSum(stream);
  Result result;
  result.grad_norm = NormOfSum();
  result.skipped = !std::isfinite(result.grad_norm);
  result.spoiled = result.skipped && pieces_.has_value();
  if (result.skipped || !pieces_) return result;
  last_norm_ = result.grad_norm;
  updated_->Record(stream);
  exchange_.StartGatherValues(*updated_);
  return result;
}

// Random bits belong to a parameter, so that they do not depend on how a run is made up.
std::vector<RoundedRange> Optimizer::RoundingOf(const OwnedRange& run, int64_t step) const {
  std::vector<RoundedRange> ranges;
  for (const OwnedRange& piece : rounded_[&run - update_runs_.data()]) {
    const uint64_t stream = RngStream("stochastic rounding", parameters_[piece.segment].name,
                                      static_cast<uint64_t>(step));
    ranges.push_back({piece.flat_begin - run.flat_begin,
                      {.seed = rounding_seed_, .stream = stream, .first = piece.segment_begin}});
  }
  return ranges;
}

void Optimizer::Update(const OwnedRange& run, const UpdateArgs& update, Stream& stream) {
  const OptimizerSpec& spec = update.spec;
  const Parameter& parameter = parameters_[run.segment];
  const MomentViews moments = buffer_.Moments(run);
  AdamWArgs args;
  args.values = buffer_.values().Range(run.flat_begin, run.count);
  args.grads = exchange_.SummedGrads(run);
  args.m = moments.m;
  args.v = moments.v;
  args.m_scale = moments.m_scale;
  args.v_scale = moments.v_scale;
  args.scale = scalars_.View(DType::kF32, 1, kScaleOffset);
  args.lr = update.lr;
  args.beta1 = spec.beta1;
  args.beta2 = spec.beta2;
  args.epsilon = spec.epsilon;
  args.weight_decay = parameter.decay ? spec.weight_decay : 0;
  args.step = update.step;
  args.born = buffer_.Born(run);
  if (!args.born.empty()) args.growth_ramp = growth_ramps_[run.segment];
  if (buffer_.format().bf16) {
    args.rounding = RoundingOf(run, update.step);
  } else {
    args.master = buffer_.Master(run);
  }
  backend_.AdamW(args, stream);
}

}  // namespace filigree

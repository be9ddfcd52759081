#include "trainer/layer_updates.h"

namespace filigree {
namespace {

int UnitOf(const FlatLayout& layout, int segment) {
  return layout.buckets()[layout.segments()[segment].bucket].unit;
}

}  // namespace

LayerUpdates::LayerUpdates(TrainingState& state, const std::optional<Optimizer::UpdateArgs>& update,
                           Stream& stream)
    : state_(state), stream_(stream), most_waiting_(state.exchange().travels() ? 1 : 0) {
  const FlatLayout& layout = state.buffer().layout();
  missing_.assign(layout.buckets().back().unit + 1, 0);
  for (size_t i = 0; i < layout.segments().size(); ++i) {
    ++missing_[UnitOf(layout, static_cast<int>(i))];
  }
  state.optimizer().BeginPieces(update, stream);
}

void LayerUpdates::Ready(int parameter) {
  const int unit = UnitOf(state_.buffer().layout(), parameter);
  if (--missing_[unit] > 0) return;
  waiting_.push_back(unit);
  while (waiting_.size() > most_waiting_) Finish(waiting_.front());
}

void LayerUpdates::Finish(int unit) {
  CHECK_EQ(unit, waiting_.front());
  waiting_.pop_front();
  FlatBuffer& buffer = state_.buffer();
  const std::vector<Bucket>& buckets = buffer.layout().buckets();
  for (size_t i = 0; i < buckets.size(); ++i) {
    if (buckets[i].unit != unit) continue;
    const int bucket = static_cast<int>(i);
    state_.exchange().WaitGrads(bucket, stream_);
    state_.optimizer().UpdatePiece(bucket, stream_);
    // Runs are joined over the padding between segments, which must stay zero whichever unit is
    // there.
    if (buffer.slots().count > 0) buffer.device().ZeroAsync(buffer.BucketGrads(bucket), stream_);
  }
}

Optimizer::Result LayerUpdates::End() {
  while (!waiting_.empty()) Finish(waiting_.front());
  return state_.optimizer().EndPieces(stream_);
}

}  // namespace filigree

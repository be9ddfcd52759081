#include "trainer/replayed_passes.h"

#include <algorithm>

namespace filigree {
namespace {

// A step has up to three kinds of passes, and a ragged one. More are passes that never come again.
constexpr size_t kMaxEntries = 8;

// Operations of a micro-batch's pass below which WHERE_THEY_GAIN records. On H100s a llama of 3.5M
// parameters over 8,192 tokens, 2e11, gained a seventh; GPT-2 124M over 32,768, 1e13 to 3e13, 0.3 to
// 1 ms of 40 to 56, no more than two processes differ by; GPT-3 XL over 16,384, from 6e13, nothing.
constexpr double kGainsBelowFlops = 2e12;

}  // namespace

bool ReplaysPasses(GraphChoice choice, const BatchSpec& batch, const Model& model,
                   const Device& device) {
  // Elsewhere there is nothing to record, and the loss scale stays a double.
  if (device.name() != "cuda" || choice == GraphChoice::kOff) return false;
  if (choice == GraphChoice::kWherePossible) return true;
  const double tokens = static_cast<double>(batch.micro_batch_sequences * batch.seq_len);
  const double forward = ForwardFlopsPerToken(model, batch.seq_len).executed;
  return LinearFlops::kPasses * forward * tokens < kGainsBelowFlops;
}

bool ReplayedPasses::Key::operator==(const Key& other) const {
  return model == other.model && state == other.state && tokens.data() == other.tokens.data() &&
         tokens.size() == other.tokens.size() && seq_len == other.seq_len &&
         loss_scale == other.loss_scale;
}

bool ReplayedPasses::Run(const Key& key, const std::function<void()>& pass, Stream& stream) {
  if (failed_) return pass(), true;
  std::erase_if(entries_, [&](const Entry& e) { return e.epoch != device_.memory_epoch(); });
  const auto entry = std::ranges::find(entries_, key, &Entry::key);
  if (entry == entries_.end()) {
    pass();
    if (entries_.size() == kMaxEntries) entries_.erase(entries_.begin());
    entries_.push_back({.key = key, .epoch = device_.memory_epoch(), .recording = nullptr});
    return true;
  }
  if (!entry->recording) return Record(*entry, pass, stream), true;
  entry->recording->Submit(stream);
  ++replays_;
  return false;
}

void ReplayedPasses::Record(Entry& entry, const std::function<void()>& pass, Stream& stream) {
  entry.recording = device_.Record(pass, stream);
  if (entry.recording) return entry.recording->Submit(stream);
  failed_ = true;
  entries_.clear();
  pass();
}

}  // namespace filigree

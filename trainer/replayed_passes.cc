#include "trainer/replayed_passes.h"

#include <algorithm>

namespace filigree {
namespace {

// A step has up to three kinds of passes, and a ragged one. More are passes that never come again.
constexpr size_t kMaxEntries = 8;

}  // namespace

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

#include "data/split_writer.h"

#include <atomic>
#include <filesystem>
#include <thread>

#include "data/file_io.h"

namespace filigree {
namespace {

// Text encoded at a time by all threads together.
constexpr int64_t kBatchBytes = 4 << 20;

}  // namespace

Status SplitWriter::Add(int64_t text_bytes, std::span<const int32_t> ids) {
  ++split_.documents;
  split_.bytes += text_bytes;
  split_.tokens += static_cast<int64_t>(ids.size());
  for (int32_t id : ids) ++counts_[id];
  return writer_.Write(ids);
}

StatusOr<ManifestSplit> SplitWriter::Finish() {
  RETURN_IF_ERROR(writer_.Finish());
  for (const ShardWriter::Shard& shard : writer_.shards()) {
    const std::string name = std::filesystem::path(shard.path).filename().string();
    split_.shards.push_back({name, shard.tokens, HashHex(shard.hash)});
  }
  return split_;
}

Status ParallelEncoder::Add(Split split, std::string_view text) {
  waiting_.push_back({split, std::string(text), {}});
  waiting_bytes_ += static_cast<int64_t>(text.size());
  return waiting_bytes_ < kBatchBytes ? OkStatus() : Flush();
}

Status ParallelEncoder::Flush() {
  std::atomic<size_t> next = 0;
  const auto work = [&] {
    for (size_t i = next++; i < waiting_.size(); i = next++) {
      waiting_[i].ids = tokenizer_.Encode(waiting_[i].text);
      waiting_[i].ids.insert(waiting_[i].ids.begin(), tokenizer_.delimiter_id());
    }
  };
  std::vector<std::thread> helpers;
  for (int t = 1; t < threads_; ++t) helpers.emplace_back(work);
  work();
  for (std::thread& helper : helpers) helper.join();
  for (const Item& item : waiting_) {
    SplitWriter* writer = item.split == Split::kTrain ? train_ : val_;
    RETURN_IF_ERROR(writer->Add(static_cast<int64_t>(item.text.size()), item.ids));
  }
  waiting_.clear();
  waiting_bytes_ = 0;
  return OkStatus();
}

}  // namespace filigree

// The writing half of `prepare`: documents encoded on several threads into the shards of two
// splits.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/corpus.h"
#include "data/manifest.h"
#include "data/token_shard.h"
#include "data/tokenizer.h"
#include "kernels/base/status.h"

namespace filigree {

// One split as it is written: its shards and its counts.
class SplitWriter {
 public:
  SplitWriter(ShardWriterOptions options, int32_t vocab_size)
      : writer_(std::move(options)), counts_(vocab_size, 0) {}

  // One document: the bytes of its text, its ids with the delimiter.
  Status Add(int64_t text_bytes, std::span<const int32_t> ids);
  // Completes the last shard. The errors are ShardWriter's.
  StatusOr<ManifestSplit> Finish();
  // How often each id was written.
  const std::vector<int64_t>& counts() const { return counts_; }

 private:
  ShardWriter writer_;
  ManifestSplit split_;
  std::vector<int64_t> counts_;
};

// Collects documents, encodes them on `threads` threads a few megabytes at a time, and hands them
// to their split in the order they came, each behind the tokenizer's delimiter. Everything passed
// in must outlive it.
class ParallelEncoder {
 public:
  ParallelEncoder(const Tokenizer& tokenizer, int threads, SplitWriter* train, SplitWriter* val)
      : tokenizer_(tokenizer), threads_(threads), train_(train), val_(val) {}

  Status Add(Split split, std::string_view text);
  // Encodes and writes what is waiting; call it once more at the end.
  Status Flush();

 private:
  struct Item {
    Split split;
    std::string text;
    std::vector<int32_t> ids;
  };

  const Tokenizer& tokenizer_;
  int threads_;
  SplitWriter *train_, *val_;
  std::vector<Item> waiting_;
  int64_t waiting_bytes_ = 0;
};

}  // namespace filigree

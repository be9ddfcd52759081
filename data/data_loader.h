// The step-addressed data loader: which tokens a step sees is a pure function of the options and of
// how many samples were consumed before it. There is no loader state to save; ranks merely
// partition the list of samples, so the order of data is the same at any world size.
//
// A sample is one row of `seq_len` input tokens and `seq_len` targets (the next token; -1 = masked,
// not counted in the loss).
//
// Epochs: a source of n samples shows each of them exactly once in every n consecutive draws from
// it that begin at a multiple of n; epoch e visits them in the order RandomPermutation(seed,
// RngStream("data_order", source index, e), n), or in file order where `shuffle` is off.
//
// Mixtures: sample i belongs to source s by an exact interleaving (s takes floor((i+1)p) -
// floor(ip) of the samples its predecessors left), so after n samples source s has given n times
// its share of the weights, to within the number of sources, and each source keeps its own exact
// epochs.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "data/token_dataset.h"
#include "kernels/base/status.h"

namespace filigree {

struct DataSource {
  std::string glob;
  // Share of the samples, relative to the other sources. All zero: by size, so that one epoch of
  // the mixture visits every sample of every source once.
  double weight = 0.0;
};

enum class SampleLayout {
  // Sample w predicts tokens w * seq_len + 1 .. (w + 1) * seq_len of the source (it reads one more
  // token than it predicts). Targets are disjoint; samples run across documents and shards; the
  // tail
  // shorter than a sample is dropped.
  kPacked,
  // Sample d is document d: its first seq_len + 1 tokens. The tail of a longer document is dropped;
  // a
  // shorter one ends with the delimiter (added unless it is there) as its last target, and
  // positions
  // behind it hold `pad_id`, targets masked. With seq_len n - 1 this predicts what a truncation to
  // n
  // tokens does.
  kOneDocumentPerRow,
};

struct DataLoaderOptions {
  std::vector<DataSource> sources;
  std::optional<DType> bare_dtype;  // for headerless nanoGPT files: kU16 or kU32
  int64_t seq_len = 0;
  int64_t vocab_size = 0;  // every id of every source must be below it
  uint64_t seed = 0;
  bool shuffle = true;
  SampleLayout layout = SampleLayout::kPacked;
  // kOneDocumentPerRow only:
  int32_t delimiter_id = -1;  // the document delimiter
  int32_t pad_id = -1;        // input id of padded positions, in [0, vocab_size); never a target
  // Only targets behind the first occurrence of this id in their document count (fine-tuning on
  // "prompt SEPARATOR answer"); a document without it is masked whole. -1: all count.
  int32_t loss_after_token = -1;
};

// Immutable once open; moved, not copied; reads may run on several threads at once.
class DataLoader {
 public:
  // Opens every source and checks every token id. InvalidInput: the options contradict themselves,
  // a shard is bad (see token_shard.h), an id is beyond the vocabulary, or a source is shorter than
  // one sample.
  static StatusOr<DataLoader> Open(DataLoaderOptions options);

  // Writes samples [first_sample, first_sample + count), row-major [count, seq_len] each. Sample
  // indices are global: samples consumed by all ranks since the phase began. Never ends: epochs
  // follow one another.
  void ReadSamples(int64_t first_sample, int64_t count, int32_t* tokens, int32_t* targets) const;

  // The samples after which every sample of every source was seen at least once. For one source, or
  // several weighted by size, that is each exactly once.
  int64_t samples_per_epoch() const { return samples_per_epoch_; }

  // Which source a global sample index draws from, and the how-many-th draw from it this is.
  struct Draw {
    int source;
    int64_t index;
  };
  Draw Locate(int64_t sample) const;

  const DataLoaderOptions& options() const { return options_; }
  int64_t seq_len() const { return options_.seq_len; }
  int num_sources() const { return static_cast<int>(sources_.size()); }
  const TokenDataset& dataset(int source) const { return sources_[source].dataset; }
  int64_t samples_in(int source) const { return sources_[source].samples; }
  // Tokens of the source that no sample predicts (packed: the tail; one document a row: the tails).
  int64_t dropped_tokens(int source) const { return sources_[source].dropped_tokens; }
  // One line for the log: tokens, samples and dropped tokens of every source.
  std::string Describe() const;

 private:
  struct Source {
    explicit Source(TokenDataset opened) : dataset(std::move(opened)) {}
    TokenDataset dataset;
    int64_t samples = 0;
    int64_t dropped_tokens = 0;
    uint64_t share = 0;               // of what the sources before it left, in units of 2^-62
    std::vector<int64_t> row_starts;  // kOneDocumentPerRow: samples + 1 document boundaries
  };

  DataLoader() = default;
  Status AddSource(const std::string& glob);
  void SetShares();
  int64_t DrawsFrom(int source, int64_t samples) const;
  int64_t FindSamplesPerEpoch() const;
  int64_t RowOf(const Draw& draw) const;
  // Read at most seq_len + 1 tokens into `window` and return how many.
  int64_t ReadPacked(const Source& source, int64_t row, int32_t* window) const;
  int64_t ReadDocument(const Source& source, int64_t row, int32_t* window) const;
  void WriteRow(const int32_t* window, int64_t length, int32_t* tokens, int32_t* targets) const;

  DataLoaderOptions options_;
  std::vector<Source> sources_;
  int64_t samples_per_epoch_ = 0;
};

// The part of `count` consecutive samples that `rank` of `world_size` takes: contiguous, in rank
// order, together exactly the list. Where world_size does not divide count, parts differ by one
// sample, and a part may be empty.
struct SampleRange {
  int64_t begin;
  int64_t count;
};
SampleRange PartitionSamples(int64_t count, int rank, int world_size);

// Samples read from a DataLoader: [count, seq_len] row-major each.
struct SampleBatch {
  int64_t first_sample = -1;
  int64_t count = 0;
  std::vector<int32_t> tokens, targets;
};

// Reads the next batch on a background thread while the caller works on this one. What it hands out
// is what DataLoader::ReadSamples writes, whether or not it was requested before.
//
//   prefetcher.Request(first, count);
//   const SampleBatch& batch = prefetcher.Take(first, count);
//   prefetcher.Request(first + total, count);   // fills the other buffer meanwhile
//
// Used by one thread; `loader` must outlive it.
class Prefetcher {
 public:
  explicit Prefetcher(const DataLoader* loader) : loader_(loader) {}
  ~Prefetcher();
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  // Starts reading in the background; a request that was never taken is replaced.
  void Request(int64_t first_sample, int64_t count);
  // The batch, waiting for it where it was requested and reading it at once where it was not. Valid
  // until the next Take.
  const SampleBatch& Take(int64_t first_sample, int64_t count);

 private:
  void Wait();

  const DataLoader* loader_;
  SampleBatch taken_, next_;
  std::thread thread_;
};

}  // namespace filigree

// A glob of token shards seen as one long sequence of token ids, and counts over it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/token_shard.h"
#include "kernels/base/status.h"

namespace filigree {

// Move-only; all reads are const and may run on several threads at once.
class TokenDataset {
 public:
  // Opens the shards that match `glob`, in bytewise order of their paths, concatenated logically.
  // A Megatron pair counts once, whichever of its files match; its bare prefix may stand for it.
  // Errors (InvalidInput): nothing matches, or any of TokenShard::Open's.
  static StatusOr<TokenDataset> Open(const std::string& glob, std::optional<DType> bare_dtype = {});

  const std::string& glob() const { return glob_; }
  int64_t size() const { return ends_.back(); }
  const std::vector<TokenShard>& shards() const { return shards_; }

  // Copies tokens [begin, begin + count) to out, across shards.
  void Read(int64_t begin, int64_t count, int32_t* out) const;

  // InvalidInput naming shard, position and id where an id is not in [0, vocab_size).
  Status CheckVocabulary(int64_t vocab_size) const;

  // The first token of each document, ascending, the first always 0. Megatron's own index where all
  // shards have one. Otherwise documents are told by their delimiter: prepended (a document starts
  // at it) where the dataset begins with one, as Filigree and llm.c write; appended (the next
  // document starts after it) where it does not, as nanoGPT writes. Reads everything once.
  // InvalidInput where the delimiter never occurs.
  StatusOr<std::vector<int64_t>> DocumentStarts(int32_t delimiter_id) const;

 private:
  TokenDataset() = default;

  std::string glob_;
  std::vector<TokenShard> shards_;
  std::vector<int64_t> ends_;  // ends_[i] = tokens in shards 0..i
};

// How often each id of [0, vocab_size) occurs, delimiters included. InvalidInput as
// CheckVocabulary.
StatusOr<std::vector<int64_t>> CountTokens(const TokenDataset& dataset, int64_t vocab_size);

// Entropy in nats a token of a text under its own token frequencies: -sum p ln p, p = count /
// total. The least loss that any predictor reaches on this text from token frequencies alone.
double UnigramEntropy(std::span<const int64_t> counts);
// Cross entropy in nats a token of a text (`counts`) under the frequencies of another
// (`model_counts`, each plus one): what a unigram model fitted on the training text loses on the
// held-out text. Both have one count for each id of the vocabulary.
double UnigramCrossEntropy(std::span<const int64_t> counts, std::span<const int64_t> model_counts);
// UnigramEntropy of a whole dataset.
StatusOr<double> UnigramEntropy(const TokenDataset& dataset, int64_t vocab_size);

}  // namespace filigree

// The documents of `prepare` after a first pass over them: which count, and which are held out.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "data/text_input.h"
#include "kernels/base/status.h"

namespace filigree {

enum class Split : uint8_t { kTrain, kVal };

struct CorpusOptions {
  std::vector<std::string> inputs;
  std::string json_key;
  double val_fraction;
  uint64_t seed;
  // See PrepareOptions; may be empty.
  std::function<void(const char* stage, int64_t bytes_done, int64_t bytes_total)> progress;
};

class Corpus {
 public:
  // Reads everything once. InvalidInput: TextInput's errors, or no text at all.
  static StatusOr<Corpus> Scan(CorpusOptions options);

  // Reads everything again and hands out the text of each split in input order, duplicates left
  // out. A corpus of one document comes as its two parts. InvalidInput where the files changed
  // meanwhile.
  Status ForEachText(const char* stage,
                     const std::function<Status(Split, std::string_view)>& visit) const;

  // Training text cut into pieces for TrainSentencePieceModel: all of it, or, where that is more
  // than budget_bytes, a random sample of about that size, drawn by the seed.
  StatusOr<std::vector<std::string>> TokenizerTrainingPieces(int64_t budget_bytes) const;

  // Depends on the content and order of all documents, not on where they lie.
  const std::string& inputs_hash() const { return inputs_hash_; }
  int64_t duplicate_paths() const { return input_.duplicate_paths(); }
  int64_t duplicate_documents() const { return duplicate_documents_; }
  // One line for the log: files, documents, bytes, and what was dropped or replaced.
  std::string Describe() const;

 private:
  enum class Role : uint8_t { kTrain, kVal, kDuplicate };
  struct Record {
    uint64_t hash;  // of the text
    int64_t bytes;
    Role role;
  };

  Corpus(CorpusOptions options, TextInput input)
      : options_(std::move(options)), input_(std::move(input)) {}
  void AssignSplits();
  void Report(const char* stage, int64_t bytes_done) const;

  CorpusOptions options_;
  TextInput input_;
  TextInputCounts counts_;
  std::vector<Record> records_;  // in input order
  std::string inputs_hash_;
  int64_t duplicate_documents_ = 0;
  int64_t text_bytes_ = 0;  // without duplicates
};

}  // namespace filigree

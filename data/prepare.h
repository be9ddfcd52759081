// `filigree prepare`: text to token shards, a tokenizer and a manifest.
//
// The output directory holds train_000000.bin..., val_000000.bin... (llm.c form, every document
// preceded by the delimiter), tokenizer.model or tokenizer.json, and manifest.json. It appears
// whole or not at all: everything is written to a directory beside it and renamed.
//
// Training and validation documents are disjoint: documents of equal content count once, and whole
// documents go to one split or the other. Documents are ordered by a hash of (seed, content), and
// the first ones whose bytes add up to `val_fraction` of the text are held out, at least one in
// each split. A corpus of one single document is cut near its end instead. A tokenizer that is
// trained sees training documents only. Same inputs and options, same bytes.
//
// Memory holds one document (a few megabytes of small ones at a time) and about 80 bytes for
// each document.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/manifest.h"
#include "kernels/base/status.h"

namespace filigree {

struct PrepareOptions {
  std::vector<std::string> inputs;  // files, directories, globs: see text_input.h
  std::string tokenizer;  // "byte", "sentencepiece:MODEL" or "train-sentencepiece:VOCAB_SIZE"
  std::string out;
  double val_fraction = 0.01;  // of the bytes of text, in [0, 1); 0: no validation shards
  int64_t shard_tokens = 100'000'000;
  std::string json_key = "text";
  uint64_t seed = 0;
  int threads = 0;  // for encoding; 0: as many as the machine has. Does not change the result.
  // Called often, from the calling thread: what is being done and how far, in bytes of input.
  std::function<void(const char* stage, int64_t bytes_done, int64_t bytes_total)> progress;
};

struct PrepareResult {
  Manifest manifest;
  bool up_to_date = false;  // `out` already held exactly this; nothing was written
  double seconds = 0;
};

// InvalidInput (exit code 2): bad options, unreadable or empty inputs, an output directory that
// cannot be written or that holds something else. Logs what a person should know: duplicates
// dropped, invalid UTF-8 replaced.
StatusOr<PrepareResult> Prepare(const PrepareOptions& options);

}  // namespace filigree

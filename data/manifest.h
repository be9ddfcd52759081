// manifest.json of a prepared data directory: what is in it and where it came from.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/base/status.h"

namespace filigree {

struct ManifestShard {
  std::string file;  // name in the directory
  int64_t tokens = 0;
  std::string hash;  // XXH64 of the file, hexadecimal
};

struct ManifestSplit {
  int64_t documents = 0;
  int64_t tokens = 0;  // delimiters included
  int64_t bytes = 0;   // of UTF-8 text
  std::vector<ManifestShard> shards;
};

struct Manifest {
  struct TokenizerInfo {
    std::string kind;  // "byte" or "sentencepiece"
    std::string file;  // name in the directory
    std::string hash;  // XXH64 of the file, hexadecimal
    int32_t vocab_size = 0;
    int32_t bos_id = -1, eos_id = -1, delimiter_id = -1;
  } tokenizer;
  DType dtype = DType::kU16;
  ManifestSplit train, val;
  // Nats a token over the tokens of the val shards, delimiters included. `unigram_entropy`: under
  // their own frequencies. `unigram_cross_entropy`: under the train shards' frequencies plus one.
  double val_unigram_entropy = 0;
  double val_unigram_cross_entropy = 0;
  int64_t duplicate_paths = 0, duplicate_documents = 0;
  // What was asked for: hash of the documents, and of the documents together with every option.
  std::string inputs_hash, request_hash;
  std::vector<std::string> inputs;
  std::string tokenizer_spec, json_key;
  double val_fraction = 0;
  int64_t shard_tokens = 0;
  uint64_t seed = 0;
};

inline constexpr const char* kManifestName = "manifest.json";

// The file's text: stable key order, so equal manifests are equal bytes.
std::string ManifestToJson(const Manifest& manifest);
// Reads DIRECTORY/manifest.json. InvalidInput: missing, not JSON, another format or version, or a
// field missing.
StatusOr<Manifest> ReadManifest(const std::string& directory);

}  // namespace filigree

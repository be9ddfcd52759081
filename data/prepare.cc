#include "data/prepare.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string_view>
#include <thread>
#include <utility>

#include "data/corpus.h"
#include "data/file_io.h"
#include "data/split_writer.h"
#include "data/token_dataset.h"
#include "data/token_shard.h"
#include "data/tokenizer.h"
#include "kernels/base/log.h"

namespace filigree {
namespace fs = std::filesystem;
namespace {

// What a tokenizer is trained on: a kilobyte an id, within bounds. 4 MB tokenize 11 MB of English
// as tightly as all of it does (2048 ids: 0.1 % more tokens) in half the time; 32 MB are a minute's
// work.
constexpr int64_t kTrainingBytesPerId = 1024;
constexpr int64_t kMinTrainingBytes = 4 << 20, kMaxTrainingBytes = 32 << 20;

constexpr std::string_view kModelPrefix = "sentencepiece:";
constexpr std::string_view kTrainPrefix = "train-sentencepiece:";

// A tokenizer as asked for: made already, or to be trained.
struct TokenizerChoice {
  std::unique_ptr<Tokenizer> ready;
  int32_t train_vocab_size = 0;
};

StatusOr<TokenizerChoice> ParseTokenizer(const std::string& spec) {
  TokenizerChoice choice;
  const std::string_view text = spec;
  if (text == "byte") {
    choice.ready = MakeByteTokenizer();
    return choice;
  }
  if (text.starts_with(kModelPrefix)) {
    const std::string path(text.substr(kModelPrefix.size()));
    ASSIGN_OR_RETURN(std::string bytes, ReadFile(path));
    ASSIGN_OR_RETURN(choice.ready, MakeSentencePieceTokenizer(std::move(bytes), path));
    return choice;
  }
  const std::string_view number =
      text.starts_with(kTrainPrefix) ? text.substr(kTrainPrefix.size()) : std::string_view();
  const char* end = number.data() + number.size();
  const auto parsed = std::from_chars(number.data(), end, choice.train_vocab_size);
  constexpr int32_t kMaxVocabulary = 1 << 20;
  if (number.empty() || parsed.ec != std::errc() || parsed.ptr != end ||
      choice.train_vocab_size < 1 || choice.train_vocab_size > kMaxVocabulary) {
    return InvalidInput("--tokenizer " + spec +
                        ": no such tokenizer; known are byte, sentencepiece:MODEL and "
                        "train-sentencepiece:VOCAB_SIZE");
  }
  return choice;
}

Status CheckOptions(const PrepareOptions& options) {
  if (options.out.empty()) return InvalidInput("prepare: name the output directory with --out");
  if (!(options.val_fraction >= 0 && options.val_fraction < 1)) {
    return InvalidInput("--val-fraction " + std::to_string(options.val_fraction) +
                        ": must be at least 0 and below 1");
  }
  if (options.shard_tokens < 1 || options.shard_tokens > kMaxShardTokens) {
    return InvalidInput("--shard-tokens " + std::to_string(options.shard_tokens) +
                        ": must be between 1 and " + std::to_string(kMaxShardTokens));
  }
  return OkStatus();
}

// The manifest of what `out` holds; nothing where it is absent or empty; an error where it holds
// something that must not be overwritten.
StatusOr<std::optional<Manifest>> ReadExisting(const std::string& out) {
  std::error_code error;
  const fs::file_status status = fs::status(out, error);
  if (!fs::exists(status)) return std::optional<Manifest>();
  if (!fs::is_directory(status)) {
    return InvalidInput(out + ": is no directory; choose another --out");
  }
  const bool empty = fs::is_empty(out, error);
  if (error) return InvalidInput(out + ": cannot be read: " + error.message());
  if (empty) return std::optional<Manifest>();
  if (!fs::exists(out + "/" + kManifestName, error)) {
    return InvalidInput(out + ": is not empty and holds no prepared data; choose another --out");
  }
  ASSIGN_OR_RETURN(Manifest manifest, ReadManifest(out));
  return std::optional<Manifest>(std::move(manifest));
}

// Whether every file that the manifest names is there and whole, by header and size.
Status CheckComplete(const std::string& out, const Manifest& manifest) {
  for (const ManifestSplit* split : {&manifest.train, &manifest.val}) {
    for (const ManifestShard& shard : split->shards) {
      ASSIGN_OR_RETURN(const TokenShard opened, TokenShard::Open(out + "/" + shard.file));
      if (opened.size() != shard.tokens) {
        return InvalidInput(opened.path() + ": is not the shard that " + kManifestName +
                            " names; delete " + out + " and prepare again");
      }
    }
  }
  return LoadTokenizer(out).status();
}

// Identifies inputs and options: equal hashes mean equal output.
std::string RequestHash(const PrepareOptions& options, const std::string& inputs_hash,
                        const TokenizerChoice& tokenizer) {
  const std::string tokenizer_identity =
      tokenizer.ready ? tokenizer.ready->hash() : std::to_string(tokenizer.train_vocab_size);
  char numbers[96];
  std::snprintf(numbers, sizeof(numbers), "%.17g %lld %llu", options.val_fraction,
                static_cast<long long>(options.shard_tokens),
                static_cast<unsigned long long>(options.seed));
  return HashHex(Hash64(inputs_hash + " " + tokenizer_identity + " " + numbers));
}

// A directory beside `out` that disappears again unless it becomes `out`.
class PartialDirectory {
 public:
  static StatusOr<std::unique_ptr<PartialDirectory>> Create(const std::string& out) {
    const std::string path = out + ".partial-" + std::to_string(getpid());
    std::error_code error;
    fs::create_directories(path, error);
    if (error || access(path.c_str(), W_OK) != 0) {
      return InvalidInput(out + ": cannot be written" + (error ? ": " + error.message() : "") +
                          "; choose another --out");
    }
    return std::unique_ptr<PartialDirectory>(new PartialDirectory(path));
  }
  ~PartialDirectory() {
    std::error_code ignored;
    if (!path_.empty()) fs::remove_all(path_, ignored);
  }
  PartialDirectory(const PartialDirectory&) = delete;
  PartialDirectory& operator=(const PartialDirectory&) = delete;

  const std::string& path() const { return path_; }

  Status Become(const std::string& out) {
    RETURN_IF_ERROR(SyncDirectory(path_));
    std::error_code error;
    fs::rename(path_, out, error);  // replaces an empty directory
    if (error) return InvalidInput(out + ": cannot be written: " + error.message());
    path_.clear();
    const std::string parent = fs::path(out).parent_path().string();
    return SyncDirectory(parent.empty() ? "." : parent);
  }

 private:
  explicit PartialDirectory(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

// Writes shards, tokenizer and manifest into `directory`; `manifest` comes with the request filled
// in.
Status WriteAll(const PrepareOptions& options, const Corpus& corpus, const Tokenizer& tokenizer,
                const std::string& directory, Manifest* manifest) {
  const int32_t vocab_size = tokenizer.vocab_size();
  manifest->tokenizer = {std::string(tokenizer.name()),
                         std::string(tokenizer.file_name()),
                         tokenizer.hash(),
                         vocab_size,
                         tokenizer.bos_id(),
                         tokenizer.eos_id(),
                         tokenizer.delimiter_id()};
  manifest->dtype = vocab_size <= 65536 ? DType::kU16 : DType::kU32;
  SplitWriter train({directory + "/train", manifest->dtype, options.shard_tokens}, vocab_size);
  SplitWriter val({directory + "/val", manifest->dtype, options.shard_tokens}, vocab_size);
  const int machine_threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  ParallelEncoder encoder(tokenizer, options.threads > 0 ? options.threads : machine_threads,
                          &train, &val);
  RETURN_IF_ERROR(corpus.ForEachText(
      "encoding", [&](Split split, std::string_view text) { return encoder.Add(split, text); }));
  RETURN_IF_ERROR(encoder.Flush());

  ASSIGN_OR_RETURN(manifest->train, train.Finish());
  ASSIGN_OR_RETURN(manifest->val, val.Finish());
  if (manifest->val.tokens > 0) {
    manifest->val_unigram_entropy = UnigramEntropy(val.counts());
    manifest->val_unigram_cross_entropy = UnigramCrossEntropy(val.counts(), train.counts());
  }
  RETURN_IF_ERROR(WriteFileAtomically(directory + "/" + std::string(tokenizer.file_name()),
                                      tokenizer.file_bytes()));
  return WriteFileAtomically(directory + "/" + kManifestName, ManifestToJson(*manifest));
}

StatusOr<PrepareResult> PrepareTo(const PrepareOptions& options, const std::string& out) {
  RETURN_IF_ERROR(CheckOptions(options));
  ASSIGN_OR_RETURN(TokenizerChoice tokenizer, ParseTokenizer(options.tokenizer));
  ASSIGN_OR_RETURN(const std::optional<Manifest> existing, ReadExisting(out));
  ASSIGN_OR_RETURN(const Corpus corpus,
                   Corpus::Scan({options.inputs, options.json_key, options.val_fraction,
                                 options.seed, options.progress}));
  LogInfo(corpus.Describe());

  PrepareResult result;
  Manifest& manifest = result.manifest;
  manifest.request_hash = RequestHash(options, corpus.inputs_hash(), tokenizer);
  if (existing.has_value()) {
    if (existing->request_hash != manifest.request_hash) {
      return InvalidInput(out + ": holds data prepared from other inputs or options (tokenizer " +
                          existing->tokenizer_spec + ", " +
                          std::to_string(existing->train.documents + existing->val.documents) +
                          " documents); delete it or choose another --out");
    }
    RETURN_IF_ERROR(CheckComplete(out, *existing));
    manifest = *existing;
    result.up_to_date = true;
    return result;
  }
  manifest.duplicate_paths = corpus.duplicate_paths();
  manifest.duplicate_documents = corpus.duplicate_documents();
  manifest.inputs_hash = corpus.inputs_hash();
  manifest.inputs = options.inputs;
  manifest.tokenizer_spec = options.tokenizer;
  manifest.json_key = options.json_key;
  manifest.val_fraction = options.val_fraction;
  manifest.shard_tokens = options.shard_tokens;
  manifest.seed = options.seed;

  ASSIGN_OR_RETURN(const auto partial, PartialDirectory::Create(out));
  if (tokenizer.ready == nullptr) {
    const int64_t budget = std::clamp(kTrainingBytesPerId * tokenizer.train_vocab_size,
                                      kMinTrainingBytes, kMaxTrainingBytes);
    ASSIGN_OR_RETURN(const auto pieces, corpus.TokenizerTrainingPieces(budget));
    ASSIGN_OR_RETURN(std::string model,
                     TrainSentencePieceModel(pieces, tokenizer.train_vocab_size));
    ASSIGN_OR_RETURN(tokenizer.ready,
                     MakeSentencePieceTokenizer(std::move(model), "the trained model"));
  }
  RETURN_IF_ERROR(WriteAll(options, corpus, *tokenizer.ready, partial->path(), &manifest));
  RETURN_IF_ERROR(partial->Become(out));
  return result;
}

}  // namespace

StatusOr<PrepareResult> Prepare(const PrepareOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  std::string out = options.out;
  while (out.size() > 1 && out.ends_with('/')) out.pop_back();
  ASSIGN_OR_RETURN(PrepareResult result, PrepareTo(options, out));
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace filigree

#include "data/manifest.h"

#include <nlohmann/json.hpp>

#include "data/file_io.h"

namespace filigree {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "filigree-data";
constexpr int kVersion = 1;

Json SplitToJson(const ManifestSplit& split) {
  Json shards = Json::array();
  for (const ManifestShard& shard : split.shards) {
    shards.push_back({{"file", shard.file}, {"tokens", shard.tokens}, {"xxh64", shard.hash}});
  }
  return {{"documents", split.documents},
          {"tokens", split.tokens},
          {"bytes", split.bytes},
          {"shards", shards}};
}

ManifestSplit SplitFromJson(const Json& json) {
  ManifestSplit split;
  split.documents = json.at("documents");
  split.tokens = json.at("tokens");
  split.bytes = json.at("bytes");
  for (const Json& shard : json.at("shards")) {
    split.shards.push_back({shard.at("file"), shard.at("tokens"), shard.at("xxh64")});
  }
  return split;
}

// Throws Json::exception where a field is missing or of another type.
Manifest FromJson(const Json& json) {
  Manifest m;
  const Json& tokenizer = json.at("tokenizer");
  m.tokenizer = {tokenizer.at("kind"),        tokenizer.at("file"),   tokenizer.at("xxh64"),
                 tokenizer.at("vocab_size"),  tokenizer.at("bos_id"), tokenizer.at("eos_id"),
                 tokenizer.at("delimiter_id")};
  m.dtype = json.at("dtype") == "U16" ? DType::kU16 : DType::kU32;
  m.train = SplitFromJson(json.at("train"));
  m.val = SplitFromJson(json.at("val"));
  m.val_unigram_entropy = json.at("val_unigram_entropy");
  m.val_unigram_cross_entropy = json.at("val_unigram_cross_entropy");
  m.duplicate_paths = json.at("duplicate_paths");
  m.duplicate_documents = json.at("duplicate_documents");
  m.inputs_hash = json.at("inputs_xxh64");
  m.request_hash = json.at("request_xxh64");
  const Json& request = json.at("request");
  m.inputs = request.at("inputs").get<std::vector<std::string>>();
  m.tokenizer_spec = request.at("tokenizer");
  m.json_key = request.at("json_key");
  m.val_fraction = request.at("val_fraction");
  m.shard_tokens = request.at("shard_tokens");
  m.seed = request.at("seed");
  return m;
}

}  // namespace

std::string ManifestToJson(const Manifest& m) {
  const Json json = {{"format", kFormat},
                     {"version", kVersion},
                     {"tokenizer",
                      {{"kind", m.tokenizer.kind},
                       {"file", m.tokenizer.file},
                       {"xxh64", m.tokenizer.hash},
                       {"vocab_size", m.tokenizer.vocab_size},
                       {"bos_id", m.tokenizer.bos_id},
                       {"eos_id", m.tokenizer.eos_id},
                       {"delimiter_id", m.tokenizer.delimiter_id}}},
                     {"dtype", NameOf(m.dtype)},
                     {"train", SplitToJson(m.train)},
                     {"val", SplitToJson(m.val)},
                     {"val_unigram_entropy", m.val_unigram_entropy},
                     {"val_unigram_cross_entropy", m.val_unigram_cross_entropy},
                     {"duplicate_paths", m.duplicate_paths},
                     {"duplicate_documents", m.duplicate_documents},
                     {"inputs_xxh64", m.inputs_hash},
                     {"request_xxh64", m.request_hash},
                     {"request",
                      {{"inputs", m.inputs},
                       {"tokenizer", m.tokenizer_spec},
                       {"json_key", m.json_key},
                       {"val_fraction", m.val_fraction},
                       {"shard_tokens", m.shard_tokens},
                       {"seed", m.seed}}}};
  // A path need not be UTF-8; a manifest must be.
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

StatusOr<Manifest> ReadManifest(const std::string& directory) {
  const std::string path = directory + "/" + kManifestName;
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  try {
    const Json json = Json::parse(text);
    if (json.at("format") != kFormat || json.at("version") != kVersion) {
      return InvalidInput(path + ": not a manifest of prepared data, version " +
                          std::to_string(kVersion));
    }
    return FromJson(json);
  } catch (const Json::exception& error) {
    return InvalidInput(path + ": damaged (" + error.what() + "); prepare the data again");
  }
}

}  // namespace filigree

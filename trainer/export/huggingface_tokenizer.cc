#include "trainer/export/huggingface_tokenizer.h"

#include <algorithm>

#include "data/file_io.h"
#include "data/tokenizer.h"
#include "kernels/base/log.h"
#include "trainer/checkpoint/durable_file.h"
#include "trainer/checkpoint/tokenizer_files.h"
#include "trainer/export/sentencepiece_model.h"

namespace filigree {
namespace {

constexpr const char* kConfigName = "tokenizer_config.json";
constexpr const char* kGenerationConfigName = "generation_config.json";

Status WriteDurably(const std::string& path, std::string_view bytes) {
  ASSIGN_OR_RETURN(DurableFile file, DurableFile::Create(path));
  RETURN_IF_ERROR(file.Append(bytes));
  return file.Close();
}

// Byte-level tokenizers are a tokenizer.json already.
Status WriteByteLevelConfig(const Tokenizer& tokenizer, TokenizerConfig config,
                            const std::string& out_dir) {
  config.bos = AddedTokenContent(tokenizer.file_bytes(), tokenizer.bos_id());
  config.eos = AddedTokenContent(tokenizer.file_bytes(), tokenizer.eos_id());
  return WriteDurably(out_dir + "/" + kConfigName, HfTokenizerConfigText(config));
}

// A SentencePiece model also becomes a tokenizer.json: transformers' own conversion drops a space
// at the beginning of a text.
Status WriteSentencePieceConfig(const Tokenizer& tokenizer, TokenizerConfig config,
                                const std::string& place, const std::string& out_dir) {
  ASSIGN_OR_RETURN(const SentencePieceFile model,
                   ReadSentencePieceFile(tokenizer.file_bytes(), place));
  const std::string json = TokenizerJsonOf(model, tokenizer.bos_id());
  if (json.empty()) {
    LogWarning(place + ": transformers cannot express this SentencePiece model in general; it is " +
               "exported as it is, without a tokenizer_config.json: add the one it came with");
    return OkStatus();
  }
  RETURN_IF_ERROR(WriteDurably(out_dir + "/tokenizer.json", json));
  config.bos = model.TextOf(tokenizer.bos_id());
  config.eos = model.TextOf(tokenizer.eos_id());
  config.unk = model.TextOf(model.unknown_id());
  return WriteDurably(out_dir + "/" + kConfigName, HfTokenizerConfigText(config));
}

}  // namespace

StatusOr<SpecialTokens> ExportTokenizer(const std::string& tokenizer_dir,
                                        const std::string& out_dir, int64_t max_length) {
  if (tokenizer_dir.empty()) return SpecialTokens{};
  const std::vector<std::string> names = TokenizerFiles(tokenizer_dir);
  const auto has = [&](const char* name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  for (const std::string& name : names) {
    if (name == kGenerationConfigName) continue;  // the export has its own
    ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(tokenizer_dir + "/" + name));
    RETURN_IF_ERROR(WriteDurably(out_dir + "/" + name, file.text()));
  }
  if (has(kConfigName) && has(kGenerationConfigName)) {
    const std::string path = tokenizer_dir + "/" + kGenerationConfigName;
    ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
    return ParseSpecialTokens(text, path);
  }
  auto tokenizer = LoadTokenizer(tokenizer_dir);
  if (!tokenizer.ok()) {
    // An imported tokenizer of a kind that we do not read travels as it came.
    if (has(kConfigName)) return SpecialTokens{};
    return tokenizer.status();
  }
  if (!has(kConfigName)) {
    const TokenizerConfig config = {.bos = "", .eos = "", .unk = "", .max_length = max_length};
    const bool byte_level = (*tokenizer)->file_name() == "tokenizer.json";
    RETURN_IF_ERROR(byte_level
                        ? WriteByteLevelConfig(**tokenizer, config, out_dir)
                        : WriteSentencePieceConfig(**tokenizer, config,
                                                   tokenizer_dir + "/tokenizer.model", out_dir));
  }
  return SpecialTokens{.bos = (*tokenizer)->bos_id(), .eos = (*tokenizer)->eos_id()};
}

}  // namespace filigree

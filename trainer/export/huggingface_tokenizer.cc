#include "trainer/export/huggingface_tokenizer.h"

#include <algorithm>
#include <filesystem>

#include "data/file_io.h"
#include "data/tokenizer.h"
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

StatusOr<TokenizerConfig> ConfigOf(const Tokenizer& tokenizer, const std::string& place,
                                   int64_t max_length) {
  TokenizerConfig config;
  config.max_length = max_length;
  if (tokenizer.file_name() == "tokenizer.json") {
    config.tokenizer_class = "PreTrainedTokenizerFast";
    config.bos = AddedTokenContent(tokenizer.file_bytes(), tokenizer.bos_id());
    config.eos = AddedTokenContent(tokenizer.file_bytes(), tokenizer.eos_id());
    return config;
  }
  ASSIGN_OR_RETURN(const SentencePieceSummary summary,
                   SummarizeSentencePiece(tokenizer.file_bytes(), tokenizer.bos_id(),
                                          tokenizer.eos_id(), place));
  if (!summary.is_bpe) {
    return InvalidInput(place +
                        ": is a SentencePiece unigram model, which LlamaTokenizer does not load; "
                        "export with a tokenizer_config.json beside it that names its class");
  }
  config.tokenizer_class = "LlamaTokenizer";
  config.bos = summary.bos;
  config.eos = summary.eos;
  config.unk = summary.unk;
  return config;
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
    ASSIGN_OR_RETURN(const TokenizerConfig config,
                     ConfigOf(**tokenizer, tokenizer_dir + "/" + names[0], max_length));
    RETURN_IF_ERROR(WriteDurably(out_dir + "/" + kConfigName, HfTokenizerConfigText(config)));
  }
  return SpecialTokens{.bos = (*tokenizer)->bos_id(), .eos = (*tokenizer)->eos_id()};
}

}  // namespace filigree

#include "trainer/checkpoint/tokenizer_files.h"

#include <filesystem>

namespace filigree {

std::vector<std::string> TokenizerFiles(const std::string& directory) {
  const auto exists = [&](const char* name) {
    return std::filesystem::is_regular_file(directory + "/" + name);
  };
  const bool gpt2_pair = exists("vocab.json") && exists("merges.txt");
  if (!exists("tokenizer.model") && !exists("tokenizer.json") && !gpt2_pair) return {};
  std::vector<std::string> names;
  // generation_config.json: an imported model's begin and end tokens.
  for (const char* name : {"tokenizer.model", "tokenizer.json", "tokenizer_config.json",
                           "vocab.json", "merges.txt", "special_tokens_map.json",
                           "added_tokens.json", "chat_template.jinja", "generation_config.json"}) {
    if (exists(name)) names.push_back(name);
  }
  return names;
}

}  // namespace filigree

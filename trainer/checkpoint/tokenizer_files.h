// The files by which a directory defines its tokenizer: what checkpoints and exports carry along.
#pragma once

#include <string>
#include <vector>

namespace filigree {

// Names of those files that are in `directory`: tokenizer.model, tokenizer.json or the pair
// vocab.json and merges.txt, and what Hugging Face keeps beside them. Empty where none of the three
// is there.
std::vector<std::string> TokenizerFiles(const std::string& directory);

}  // namespace filigree

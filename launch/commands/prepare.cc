#include "data/prepare.h"

#include <cstdio>

#include "launch/commands/commands.h"
#include "trainer/metrics/numbers.h"

namespace filigree {
namespace {

void PrintSplit(const char* name, const ManifestSplit& split) {
  std::printf("%-11s %s documents, %s tokens, %s of text\n", name,
              FormatCount(static_cast<double>(split.documents)).c_str(),
              FormatCount(static_cast<double>(split.tokens)).c_str(),
              FormatBytes(static_cast<double>(split.bytes)).c_str());
}

}  // namespace

Status PrepareCommand::Run() const {
  PrepareOptions options;
  options.inputs = inputs;
  options.tokenizer = tokenizer;
  options.out = out;
  options.val_fraction = val_fraction;
  options.shard_tokens = shard_tokens;
  options.json_key = json_key;
  options.seed = seed;
  ASSIGN_OR_RETURN(const PrepareResult result, Prepare(options));
  const Manifest& manifest = result.manifest;
  std::printf("%s %s\n", out.c_str(), result.up_to_date ? "is up to date" : "prepared");
  std::printf("tokenizer   %s, %d ids\n", manifest.tokenizer.kind.c_str(),
              manifest.tokenizer.vocab_size);
  PrintSplit("train", manifest.train);
  PrintSplit("validation", manifest.val);
  std::printf("validation  unigram entropy %.4f nats a token\n", manifest.val_unigram_entropy);
  return OkStatus();
}

}  // namespace filigree

// The directories that exports leave: tokenizers beside the weights, and what was there before.
#include <gmock/gmock.h>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "tests/unit/export_fixture.h"

namespace filigree {
namespace {

using ::testing::HasSubstr;
using ExportDirectoryTest = ExportTest;

TEST_F(ExportDirectoryTest, ByteTokenizerComesAlong) {
  Write("tokenizer/tokenizer.json", MakeByteTokenizer()->file_bytes());
  ExportOk(ModelFamily::kLlama, /*tied_head=*/false, kF32, Path("tokenizer"));
  const auto config = JsonOf(Path("out/tokenizer_config.json"));
  EXPECT_EQ(config["tokenizer_class"], "PreTrainedTokenizerFast");
  EXPECT_EQ(config["eos_token"], "<|endoftext|>");
  EXPECT_EQ(config["model_max_length"], 32);
  EXPECT_EQ(JsonOf(Path("out/config.json"))["eos_token_id"], 256);
  EXPECT_EQ(JsonOf(Path("out/generation_config.json"))["bos_token_id"], 256);
  EXPECT_EQ((*LoadTokenizer(Path("out")))->name(), "byte");
}

// Encodes as a reader of tokenizer.json does: normalise, cut into characters, merge the pair of
// lowest rank until none is left, spell the rest in bytes.
std::vector<int32_t> EncodeByJson(const nlohmann::json& json, const std::string& text) {
  std::map<std::string, size_t> ranks;
  for (const std::string merge : json["model"]["merges"]) ranks.emplace(merge, ranks.size());
  std::string normal = json["normalizer"]["normalizers"][0]["prepend"];
  for (char c : text) normal += c == ' ' ? "\u2581" : std::string(1, c);
  std::vector<std::string> symbols;
  for (char c : normal) {
    if ((c & 0xc0) != 0x80) symbols.emplace_back();
    symbols.back() += c;
  }
  for (;;) {
    size_t best = SIZE_MAX, place = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto found = ranks.find(symbols[i] + " " + symbols[i + 1]);
      if (found != ranks.end() && found->second < best) best = found->second, place = i;
    }
    if (best == SIZE_MAX) break;
    symbols[place] += symbols[place + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(place) + 1);
  }
  std::vector<int32_t> ids;
  const auto& vocabulary = json["model"]["vocab"];
  for (const std::string& symbol : symbols) {
    if (vocabulary.contains(symbol)) {
      ids.push_back(vocabulary[symbol]);
      continue;
    }
    for (char c : symbol) {
      char name[8];
      std::snprintf(name, sizeof(name), "<0x%02X>", static_cast<unsigned char>(c));
      ids.push_back(vocabulary[name]);
    }
  }
  return ids;
}

TEST_F(ExportDirectoryTest, SentencePieceBecomesATokenizerJsonThatEncodesAlike) {
  std::vector<std::string> pieces;
  for (int i = 0; i < 200; ++i) {
    pieces.push_back("the thinner thing " + std::to_string(i * 7919) +
                     "  then sang, \n\tstanding " + std::string(static_cast<size_t>(i % 5), ' ') +
                     "nothing caf\u00e9");
  }
  const auto model = TrainSentencePieceModel(pieces, 330);
  ASSERT_TRUE(model.ok()) << model.status().message();
  Write("tokenizer/tokenizer.model", *model);
  ExportOk(ModelFamily::kLlama, /*tied_head=*/false, kF32, Path("tokenizer"));
  EXPECT_EQ(FileText(Path("out/tokenizer.model")), *model);
  const auto config = JsonOf(Path("out/tokenizer_config.json"));
  EXPECT_EQ(config["bos_token"], "<s>");
  EXPECT_EQ(config["eos_token"], "</s>");
  EXPECT_EQ(config["unk_token"], "<unk>");
  EXPECT_EQ(JsonOf(Path("out/config.json"))["bos_token_id"], 1);
  EXPECT_EQ(JsonOf(Path("out/config.json"))["eos_token_id"], 2);
  const auto json = JsonOf(Path("out/tokenizer.json"));
  ASSERT_GT(json["model"]["merges"].size(), 30u);
  EXPECT_EQ(json["added_tokens"].size(), 3u);
  EXPECT_EQ(json["post_processor"]["single"][0]["SpecialToken"]["id"], "<s>");
  const auto tokenizer = LoadTokenizer(Path("out"));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  for (const std::string text : {"the thing", "  two spaces", "nothing then 123\n\tsang   ", " ",
                                 "caf\u00e9 \u4e2d x<0x41>", "standing"}) {
    EXPECT_EQ(EncodeByJson(json, text), (*tokenizer)->Encode(text)) << text;
  }
}

TEST_F(ExportDirectoryTest, ForeignDirectoriesAreLeftAlone) {
  Write("out/thesis.tex", "years of work");
  const Status status = Export(ModelFamily::kLlama, /*tied_head=*/false);
  EXPECT_EQ(status.exit_code(), 2);
  EXPECT_THAT(status.message(), HasSubstr("thesis.tex"));
  EXPECT_EQ(FilesBelow(Path("out")).size(), 1u);
  EXPECT_FALSE(std::filesystem::exists(Path(".out.partial")));
}

TEST_F(ExportDirectoryTest, AnEarlierExportIsReplacedUnlessSomebodyAddedToIt) {
  ExportOk(ModelFamily::kLlama, /*tied_head=*/false, kF32);
  const auto first = FilesBelow(Path("out"));
  ExportOk(ModelFamily::kLlama, /*tied_head=*/false,
           {.dtype = DType::kF32, .max_shard_bytes = 12000});
  EXPECT_FALSE(std::filesystem::exists(Path("out/model.safetensors")));
  ExportOk(ModelFamily::kLlama, /*tied_head=*/false, kF32);
  EXPECT_EQ(FilesBelow(Path("out")), first);
  Write("out/optimizer.pt", "fine-tuned");
  const auto before = FilesBelow(Path("out"));
  EXPECT_THAT(Export(ModelFamily::kLlama, false).message(), HasSubstr("optimizer.pt"));
  EXPECT_EQ(FilesBelow(Path("out")), before);
  std::filesystem::remove(Path("out/optimizer.pt"));
  // Weights that another program saved here.
  Write("out/model.safetensors", Packed<uint64_t>({8}) + "{}      ");
  EXPECT_THAT(Export(ModelFamily::kLlama, false).message(), HasSubstr("model.safetensors"));
}

}  // namespace
}  // namespace filigree

// `prepare`: the split, the files, reuse and refusal.
#include <gmock/gmock.h>

#include <algorithm>
#include <map>
#include <set>

#include "data/corpus.h"
#include "data/prepare.h"
#include "data/token_dataset.h"
#include "data/tokenizer.h"
#include "data_testing.h"
#include "kernels/base/log.h"

namespace filigree {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;

class PrepareTest : public DirectoryTest {
 protected:
  PrepareTest() { SetLogQuiet(true); }
  ~PrepareTest() override { SetLogQuiet(false); }

  // `count` documents of differing lengths below DIR/text.
  void WriteCorpus(int count) const {
    for (int i = 0; i < count; ++i) {
      std::string text = "Document " + std::to_string(i) + "\n";
      for (int line = 0; line < 5 + i % 20; ++line) {
        text += "  line " + std::to_string(line * i) + " of some words\n";
      }
      Write("text/" + std::to_string(i / 10) + "/" + std::to_string(i) + ".txt", text);
    }
  }

  PrepareOptions Options(const std::string& tokenizer = "byte") const {
    PrepareOptions options;
    options.inputs = {Path("text")};
    options.tokenizer = tokenizer;
    options.out = Path("out");
    options.val_fraction = 0.1;
    return options;
  }

  static PrepareResult Run(const PrepareOptions& options) {
    auto result = Prepare(options);
    CHECK(result.ok()) << result.status().message();
    return std::move(result).value();
  }

  static std::string Refusal(const PrepareOptions& options) {
    const auto result = Prepare(options);
    if (result.ok()) return "(accepted)";
    EXPECT_EQ(result.status().exit_code(), 2);
    return result.status().message();
  }

  // The decoded documents of one split, read through shards and tokenizer.
  std::vector<std::string> Decoded(const std::string& split) const {
    const auto tokenizer = LoadTokenizer(Path("out"));
    CHECK(tokenizer.ok()) << tokenizer.status().message();
    const auto dataset = TokenDataset::Open(Path("out") + "/" + split + "_*.bin");
    CHECK(dataset.ok()) << dataset.status().message();
    std::vector<int64_t> starts = *dataset->DocumentStarts((*tokenizer)->delimiter_id());
    starts.push_back(dataset->size());
    std::vector<std::string> texts;
    for (size_t d = 0; d + 1 < starts.size(); ++d) {
      std::vector<int32_t> ids(starts[d + 1] - starts[d]);
      dataset->Read(starts[d], static_cast<int64_t>(ids.size()), ids.data());
      texts.push_back((*tokenizer)->Decode(ids));
    }
    return texts;
  }

  // Every file below a directory, by name.
  std::map<std::string, std::string> Files(const std::string& name) const {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::directory_iterator(Path(name))) {
      files[entry.path().filename()] = *ReadFile(entry.path());
    }
    return files;
  }
};

TEST_F(PrepareTest, EveryDocumentComesOutOfExactlyOneSplit) {
  WriteCorpus(60);
  // Duplicates by symlink, by directory and by content must not leak from one split to the other.
  fs::create_symlink(Path("text/1/11.txt"), Path("text/5/again.txt"));
  fs::create_directory_symlink(Path("text/2"), Path("text/two"));
  Write("text/copy.txt", *ReadFile(Path("text/3/33.txt")));
  for (const std::string tokenizer : {"byte", "train-sentencepiece:320"}) {
    fs::remove_all(Path("out"));
    PrepareOptions options = Options(tokenizer);
    options.shard_tokens = 5000;
    const Manifest manifest = Run(options).manifest;
    EXPECT_EQ(manifest.duplicate_paths, 2);
    EXPECT_EQ(manifest.duplicate_documents, 1);
    EXPECT_EQ(manifest.train.documents + manifest.val.documents, 60);
    EXPECT_GT(manifest.train.shards.size(), 1u);

    const auto train = Decoded("train"), val = Decoded("val");
    EXPECT_EQ(static_cast<int64_t>(train.size()), manifest.train.documents);
    std::multiset<std::string> all(train.begin(), train.end());
    all.insert(val.begin(), val.end());
    ASSERT_EQ(all.size(), 60u) << tokenizer;
    for (int i = 0; i < 60; ++i) {
      const std::string file = Path("text/") + std::to_string(i / 10) + "/" + std::to_string(i);
      EXPECT_EQ(all.count(*ReadFile(file + ".txt")), 1u) << file;
    }
    const double share = static_cast<double>(manifest.val.bytes) /
                         static_cast<double>(manifest.val.bytes + manifest.train.bytes);
    EXPECT_NEAR(share, 0.1, 0.01);
  }
}

TEST_F(PrepareTest, ManifestTellsTheTruth) {
  WriteCorpus(30);
  const Manifest made = Run(Options("train-sentencepiece:320")).manifest;
  const auto read = ReadManifest(Path("out"));
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(ManifestToJson(*read), ManifestToJson(made));
  EXPECT_EQ(read->tokenizer.hash, (*LoadTokenizer(Path("out")))->hash());
  EXPECT_EQ(read->tokenizer.vocab_size, 320);
  EXPECT_EQ(read->dtype, DType::kU16);
  for (const auto& [split, name] : {std::pair{&read->train, "train"}, {&read->val, "val"}}) {
    const auto dataset = TokenDataset::Open(Path("out/") + name + "_*.bin");
    EXPECT_EQ(dataset->size(), split->tokens);
    EXPECT_EQ(split->shards[0].hash,
              HashHex(Hash64(*ReadFile(Path("out/") + split->shards[0].file))));
  }
  const auto val = TokenDataset::Open(Path("out/val_*.bin"));
  const auto train = TokenDataset::Open(Path("out/train_*.bin"));
  EXPECT_NEAR(read->val_unigram_entropy, *UnigramEntropy(*val, 320), 1e-12);
  EXPECT_NEAR(read->val_unigram_cross_entropy,
              UnigramCrossEntropy(*CountTokens(*val, 320), *CountTokens(*train, 320)), 1e-12);
  EXPECT_GT(read->val_unigram_cross_entropy, read->val_unigram_entropy);
}

TEST_F(PrepareTest, SameInputsSameBytesAtAnyNumberOfThreads) {
  WriteCorpus(40);
  PrepareOptions options = Options("train-sentencepiece:320");
  options.threads = 1;
  Run(options);
  const auto first = Files("out");
  fs::rename(Path("out"), Path("first"));
  options.threads = 3;
  Run(options);
  EXPECT_EQ(Files("out"), first);
  EXPECT_EQ(first.size(), 4u) << "train, val, tokenizer, manifest and nothing else";
  fs::remove_all(Path("out"));
  options.seed = 1;
  Run(options);
  EXPECT_NE(Files("out")["val_000000.bin"], first.at("val_000000.bin"));
}

TEST_F(PrepareTest, ReusesItsOwnOutputAndRefusesOthers) {
  WriteCorpus(10);
  EXPECT_FALSE(Run(Options()).up_to_date);
  const auto before = Files("out");
  EXPECT_TRUE(Run(Options()).up_to_date);
  EXPECT_THAT(Refusal(Options("train-sentencepiece:300")),
              AllOf(HasSubstr("other inputs or options"), HasSubstr("another --out")));
  EXPECT_EQ(Files("out"), before);
  fs::resize_file(Path("out/train_000000.bin"), 2000);
  EXPECT_THAT(Refusal(Options()), HasSubstr("train_000000.bin: truncated"));
  Write("text/new.txt", "another document");
  EXPECT_THAT(Refusal(Options()), HasSubstr("other inputs or options"));

  PrepareOptions options = Options();
  options.out = Path("text");
  EXPECT_THAT(Refusal(options), HasSubstr("holds no prepared data"));
  options.out = Path("text/new.txt");
  EXPECT_THAT(Refusal(options), HasSubstr("is no directory"));
  options.out = "/proc/filigree/out";
  EXPECT_THAT(Refusal(options), HasSubstr("/proc/filigree/out: cannot be written"));
}

TEST_F(PrepareTest, FailureLeavesNothingBehind) {
  WriteCorpus(10);
  EXPECT_THAT(Refusal(Options("train-sentencepiece:100000")), HasSubstr("100000"));
  Write("text/bad.jsonl", "{\n");
  EXPECT_THAT(Refusal(Options()), HasSubstr("bad.jsonl:1"));
  for (const auto& entry : fs::directory_iterator(directory_)) {
    EXPECT_EQ(entry.path().filename(), "text");
  }
}

TEST_F(PrepareTest, TheSmallestCorporaStillSplit) {
  Write("text/a.txt", "a short one\n");
  Write("text/b.txt", std::string(5000, 'b'));
  Run(Options());
  EXPECT_THAT(Decoded("val"), Contains("a short one\n"));
  EXPECT_THAT(Decoded("train"), Contains(std::string(5000, 'b')));

  // One document alone is cut at a line end.
  fs::remove_all(Path("out"));
  fs::remove_all(Path("text"));
  std::string lines;
  for (int i = 0; i < 100; ++i) lines += "line " + std::to_string(i) + "\n";
  Write("text/a.txt", lines);
  Run(Options());
  const std::string train = Decoded("train").at(0), val = Decoded("val").at(0);
  EXPECT_EQ(train + val, lines);
  EXPECT_TRUE(train.ends_with('\n'));
  EXPECT_NEAR(static_cast<double>(val.size()) / static_cast<double>(lines.size()), 0.1, 0.02);

  fs::remove_all(Path("out"));
  PrepareOptions options = Options();
  options.val_fraction = 0;
  EXPECT_EQ(Run(options).manifest.val.shards.size(), 0u);
  EXPECT_EQ(Decoded("train").at(0), lines);
}

TEST_F(PrepareTest, RefusesBadOptions) {
  WriteCorpus(2);
  EXPECT_THAT(Refusal(Options("bytes")), HasSubstr("known are byte"));
  EXPECT_THAT(Refusal(Options("train-sentencepiece:12x")), HasSubstr("known are byte"));
  EXPECT_THAT(Refusal(Options("sentencepiece:" + Path("none"))), HasSubstr("none"));
  PrepareOptions options = Options();
  options.val_fraction = 1;
  EXPECT_THAT(Refusal(options), HasSubstr("--val-fraction"));
  options = Options();
  options.shard_tokens = 0;
  EXPECT_THAT(Refusal(options), HasSubstr("--shard-tokens"));
  options = Options();
  options.inputs = {Write("empty.txt", "")};
  EXPECT_THAT(Refusal(options), HasSubstr("every document is empty"));
  EXPECT_FALSE(fs::exists(Path("out")));
}

TEST_F(PrepareTest, TokenizersAreTrainedOnASampleOfTheTrainingText) {
  WriteCorpus(60);
  const auto corpus = Corpus::Scan({{Path("text")}, "text", 0.2, 0, nullptr});
  ASSERT_TRUE(corpus.ok()) << corpus.status().message();
  std::set<std::string> train;
  int64_t train_bytes = 0;
  ASSERT_TRUE(corpus
                  ->ForEachText("",
                                [&](Split split, std::string_view text) {
                                  if (split == Split::kTrain) train.emplace(text);
                                  train_bytes += split == Split::kTrain ? text.size() : 0;
                                  return OkStatus();
                                })
                  .ok());
  const auto whole = corpus->TokenizerTrainingPieces(1 << 20);
  EXPECT_EQ(std::set<std::string>(whole->begin(), whole->end()), train) << "and no held-out text";
  const auto sample = corpus->TokenizerTrainingPieces(train_bytes / 3);
  int64_t sample_bytes = 0;
  for (const std::string& piece : *sample) {
    EXPECT_TRUE(train.contains(piece));
    sample_bytes += static_cast<int64_t>(piece.size());
  }
  EXPECT_GT(sample_bytes, train_bytes / 6);
  EXPECT_LT(sample_bytes, train_bytes / 2);
}

TEST_F(PrepareTest, LongDocumentsAreCutIntoPiecesAtLineEndsSpacesAndCharacters) {
  std::string text;
  for (int i = 0; i < 500; ++i) text += "line " + std::to_string(i) + "\n";
  for (int i = 0; i < 2000; ++i) text += "word ";
  for (int i = 0; i < 5000; ++i) text += "\u00e9";
  Write("text/a.txt", text);
  const auto corpus = Corpus::Scan({{Path("text")}, "text", 0.0, 0, nullptr});
  const auto pieces = corpus->TokenizerTrainingPieces(1 << 20);
  std::string joined;
  for (const std::string& piece : *pieces) {
    EXPECT_LE(static_cast<int64_t>(piece.size()), kMaxTrainingPieceBytes);
    EXPECT_NE(static_cast<unsigned char>(piece[0]) & 0xC0, 0x80) << "inside a character";
    joined += piece;
  }
  EXPECT_EQ(joined, text);
  EXPECT_TRUE(pieces->front().ends_with('\n'));
}

TEST_F(PrepareTest, ReportsProgressToTheEnd) {
  WriteCorpus(20);
  PrepareOptions options = Options();
  std::map<std::string, int64_t> done;
  int64_t total = 0;
  options.progress = [&](const char* stage, int64_t bytes_done, int64_t bytes_total) {
    EXPECT_GE(bytes_done, done[stage]);
    done[stage] = bytes_done;
    total = bytes_total;
  };
  Run(options);
  EXPECT_EQ(done["reading"], total);
  EXPECT_EQ(done["encoding"], total);
}

}  // namespace
}  // namespace filigree

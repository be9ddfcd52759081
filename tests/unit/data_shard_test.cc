// Shards and datasets: bytes, round trips, foreign and damaged files.
#include <gmock/gmock.h>

#include <cmath>

#include "data/token_dataset.h"
#include "data_testing.h"

namespace filigree {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

class ShardTest : public DirectoryTest {};

std::vector<int32_t> ReadAll(const TokenDataset& dataset) {
  std::vector<int32_t> tokens(dataset.size());
  dataset.Read(0, dataset.size(), tokens.data());
  return tokens;
}

std::string OpenError(const std::string& path, std::optional<DType> bare = {}) {
  const auto shard = TokenShard::Open(path, bare);
  EXPECT_FALSE(shard.ok()) << path;
  EXPECT_EQ(shard.status().exit_code(), 2);
  return shard.status().message();
}

std::string LlmCBytes(int32_t magic, int32_t version, int32_t count, const std::string& payload) {
  std::vector<int32_t> header(256, 0);
  header[0] = magic;
  header[1] = version;
  header[2] = count;
  return Packed(header) + payload;
}

TEST_F(ShardTest, WritesTheBytesOfLlmC) {
  WriteShards("narrow", {1, 258, 65535});
  WriteShards("wide", {1, 65536}, 1000, DType::kU32);
  const std::string narrow = *ReadFile(Path("narrow_000000.bin"));
  const std::string wide = *ReadFile(Path("wide_000000.bin"));
  ASSERT_EQ(narrow.size(), 1024u + 6);
  EXPECT_EQ(narrow.substr(0, 16), std::string("\x88\xd8\x34\x01\x01\0\0\0\x03\0\0\0\0\0\0\0", 16));
  EXPECT_EQ(narrow.substr(1024), std::string("\x01\0\x02\x01\xff\xff", 6));
  ASSERT_EQ(wide.size(), 1024u + 8);
  EXPECT_EQ(wide.substr(0, 16), std::string("\xa1\xd9\x34\x01\x07\0\0\0\x02\0\0\0\0\0\0\0", 16));
  EXPECT_EQ(wide.substr(1024), std::string("\x01\0\0\0\0\0\x01\0", 8));
  EXPECT_EQ(narrow.substr(12, 1012), std::string(1012, '\0'));
}

TEST_F(ShardTest, SplitsAtShardTokensAndReadsBackAcrossShards) {
  const std::vector<int32_t> tokens = Iota(100, 25);
  ShardWriter writer({Path("train"), DType::kU16, 10});
  ASSERT_TRUE(writer.Write(std::span(tokens).first(7)).ok());
  ASSERT_TRUE(writer.Write(std::span(tokens).subspan(7)).ok());
  EXPECT_FALSE(std::filesystem::exists(Path("train_000002.bin"))) << "not before it is complete";
  ASSERT_TRUE(writer.Finish().ok());
  ASSERT_EQ(writer.shards().size(), 3u);
  EXPECT_EQ(writer.shards()[2].tokens, 5);
  EXPECT_EQ(writer.shards()[1].hash, Hash64(*ReadFile(Path("train_000001.bin"))));

  const auto dataset = TokenDataset::Open(Path("train_*.bin"));
  ASSERT_TRUE(dataset.ok()) << dataset.status().message();
  EXPECT_THAT(ReadAll(*dataset), ElementsAreArray(tokens));
  std::vector<int32_t> part(14);
  dataset->Read(8, 14, part.data());
  EXPECT_THAT(part, ElementsAreArray(Iota(108, 14)));
}

TEST_F(ShardTest, AnUnfinishedWriterLeavesNothing) {
  {
    ShardWriter writer({Path("cut"), DType::kU16, 10});
    ASSERT_TRUE(writer.Write(Iota(0, 4)).ok());
  }
  EXPECT_TRUE(std::filesystem::is_empty(directory_));
}

TEST_F(ShardTest, ReadsNanoGptOnlyWhenTold) {
  const std::string path = Write("train.bin", Packed<uint16_t>({7, 50256, 9}));
  EXPECT_THAT(OpenError(path), AllOf(HasSubstr(path), HasSubstr("not a token shard"),
                                     HasSubstr("set data.bare_dtype")));
  const auto dataset = TokenDataset::Open(path, DType::kU16);
  ASSERT_TRUE(dataset.ok());
  EXPECT_EQ(dataset->shards()[0].format(), ShardFormat::kBare);
  EXPECT_THAT(ReadAll(*dataset), ElementsAre(7, 50256, 9));
  EXPECT_THAT(OpenError(path, DType::kU32), HasSubstr("no multiple of 4"));
  // A header wins over the caller's word.
  WriteShards("real", {5, 6});
  EXPECT_THAT(ReadAll(*TokenDataset::Open(Path("real_000000.bin"), DType::kU16)),
              ElementsAre(5, 6));
}

// Three sequences (2, 0 and 3 tokens of int32) in two documents.
std::string MegatronIndex(uint8_t dtype_code, int64_t last_pointer) {
  return std::string("MMIDIDX\0\0", 9) + Packed<uint64_t>({1}) + Packed<uint8_t>({dtype_code}) +
         Packed<uint64_t>({3, 3}) + Packed<int32_t>({2, 0, 3}) +
         Packed<int64_t>({0, 8, last_pointer}) + Packed<int64_t>({0, 2, 3});
}

TEST_F(ShardTest, ReadsMegatronPairsUnderAnyOfTheirNames) {
  Write("corpus_text_document.idx", MegatronIndex(4, 8));
  Write("corpus_text_document.bin", Packed<int32_t>({10, 70000, 12, 13, 14}));
  for (const char* name : {"corpus_text_document", "corpus_text_document.bin",
                           "corpus_text_document.idx", "corpus*"}) {
    const auto dataset = TokenDataset::Open(Path(name));
    ASSERT_TRUE(dataset.ok()) << name << ": " << dataset.status().message();
    EXPECT_EQ(dataset->shards().size(), 1u) << name;
    EXPECT_THAT(ReadAll(*dataset), ElementsAre(10, 70000, 12, 13, 14));
    EXPECT_THAT(*dataset->DocumentStarts(0), ElementsAre(0, 2));
  }
}

TEST_F(ShardTest, RefusesDamagedMegatronPairs) {
  const std::string bin = Packed<int32_t>({10, 70000, 12, 13, 14});
  Write("a.idx", MegatronIndex(4, 8));
  EXPECT_THAT(OpenError(Path("a.idx")), AllOf(HasSubstr("a.bin"), HasSubstr("missing")));
  Write("a.bin", bin.substr(0, 16));
  EXPECT_THAT(OpenError(Path("a.bin")), HasSubstr("index promises 20 bytes, the file has 16"));
  Write("a.bin", bin);
  Write("a.idx", MegatronIndex(4, 8).substr(0, 80));
  EXPECT_THAT(OpenError(Path("a.bin")), AllOf(HasSubstr("a.idx"), HasSubstr("truncated")));
  std::string huge = MegatronIndex(4, 8);
  huge.replace(18, 8, Packed<int64_t>({int64_t{1} << 62}));
  Write("a.idx", huge);
  EXPECT_THAT(OpenError(Path("a.bin")), HasSubstr("4611686018427387904 sequences"));
  Write("a.idx", MegatronIndex(4, 12));
  EXPECT_THAT(OpenError(Path("a.bin")), HasSubstr("sequence 2 does not follow"));
  Write("a.idx", MegatronIndex(7, 8));
  EXPECT_THAT(OpenError(Path("a.bin")), HasSubstr("element type code 7"));
  Write("a.idx", "something else entirely, and long enough");
  EXPECT_THAT(OpenError(Path("a.bin")), HasSubstr("not a Megatron index"));
}

TEST_F(ShardTest, RefusesMissingTruncatedAndForeignFiles) {
  EXPECT_THAT(OpenError(Path("none.bin")), HasSubstr("none.bin: no such token shard"));
  const std::string payload = Packed<uint16_t>({1, 2, 3});
  EXPECT_THAT(OpenError(Write("short.bin", LlmCBytes(20240520, 1, 4, payload))),
              AllOf(HasSubstr("truncated"), HasSubstr("4 tokens (1032 bytes)"),
                    HasSubstr("the file has 1030 bytes")));
  EXPECT_THAT(OpenError(Write("long.bin", LlmCBytes(20240520, 1, 2, payload))),
              HasSubstr("damaged"));
  EXPECT_THAT(OpenError(Write("negative.bin", LlmCBytes(20240520, 1, -1, payload))),
              HasSubstr("-1 tokens"));
  EXPECT_THAT(OpenError(Write("head.bin", LlmCBytes(20240520, 1, 2, "").substr(0, 100))),
              HasSubstr("inside its header"));
  EXPECT_THAT(OpenError(Write("version.bin", LlmCBytes(20240520, 2, 3, payload))),
              HasSubstr("has version 2; expected 1"));
  EXPECT_THAT(OpenError(Write("model.bin", LlmCBytes(20240326, 3, 3, payload))),
              HasSubstr("expected magic 20240520 or 20240801"));
  EXPECT_THAT(OpenError(Write("empty.bin", LlmCBytes(20240520, 1, 0, ""))),
              HasSubstr("holds no tokens"));
  EXPECT_THAT(OpenError(Write("zero.bin", ""), DType::kU16), HasSubstr("holds no tokens"));
  const auto glob = TokenDataset::Open(Path("train_*.bin"));
  ASSERT_FALSE(glob.ok());
  EXPECT_THAT(glob.status().message(), HasSubstr("train_*.bin: no token shard matches"));
}

TEST_F(ShardTest, CheckVocabularyNamesShardPositionAndId) {
  std::vector<int32_t> tokens(12000, 3);
  tokens[9007] = 100;
  WriteShards("t", tokens, 5000);
  const auto dataset = TokenDataset::Open(Path("t_*.bin"));
  ASSERT_TRUE(dataset.ok());
  EXPECT_TRUE(dataset->CheckVocabulary(101).ok());
  const Status status = dataset->CheckVocabulary(100);
  ASSERT_EQ(status.exit_code(), 2);
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("t_000001.bin: token 4007 has id 100, beyond the vocabulary of 100"),
                    HasSubstr("vocab_size")));
  Write("n.idx", MegatronIndex(4, 8));
  Write("n.bin", Packed<int32_t>({1, 2, 3, -4, 5}));
  EXPECT_THAT(TokenDataset::Open(Path("n.bin"))->CheckVocabulary(100).message(),
              HasSubstr("token 3 has id -4"));
}

TEST_F(ShardTest, FindsDocumentsByDelimitersBeforeOrBehindThem) {
  WriteShards("before", {0, 5, 6, 0, 7, 0, 8, 9}, 3);
  EXPECT_THAT(*TokenDataset::Open(Path("before_*"))->DocumentStarts(0), ElementsAre(0, 3, 5));
  WriteShards("behind", {5, 6, 0, 7, 0, 8, 9, 0}, 3);
  const auto behind = TokenDataset::Open(Path("behind_*"));
  EXPECT_THAT(*behind->DocumentStarts(0), ElementsAre(0, 3, 5));
  EXPECT_THAT(behind->DocumentStarts(77).status().message(), HasSubstr("77 never occurs"));
}

TEST_F(ShardTest, UnigramEntropyIsThatOfItsOwnFrequencies) {
  WriteShards("u", {0, 0, 1, 2});  // 1/2, 1/4, 1/4
  const auto dataset = TokenDataset::Open(Path("u_*"));
  EXPECT_NEAR(*UnigramEntropy(*dataset, 4), 1.5 * std::log(2.0), 1e-12);
  EXPECT_THAT(*CountTokens(*dataset, 4), ElementsAre(2, 1, 1, 0));
  EXPECT_EQ(UnigramEntropy(*dataset, 2).status().exit_code(), 2);
  // Model counts 3, 0, 0, 1 become (4, 1, 1, 2) / 8.
  const std::vector<int64_t> text = {2, 1, 1, 0}, model = {3, 0, 0, 1};
  EXPECT_NEAR(UnigramCrossEntropy(text, model), 0.5 * std::log(2.0) + 0.5 * std::log(8.0), 1e-12);
}

}  // namespace
}  // namespace filigree

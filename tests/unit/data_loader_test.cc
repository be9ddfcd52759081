// The order of data: exact coverage, the same at any world size, pinned by golden values.
#include "data/data_loader.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "data_testing.h"

namespace filigree {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

class LoaderTest : public DirectoryTest {
 protected:
  DataLoaderOptions Options(std::vector<DataSource> sources, int64_t seq_len = 4) {
    for (DataSource& source : sources) source.glob = Path(source.glob);
    DataLoaderOptions options;
    options.sources = std::move(sources);
    options.seq_len = seq_len;
    options.vocab_size = 60000;
    options.seed = 42;
    return options;
  }

  static DataLoader Open(DataLoaderOptions options) {
    auto loader = DataLoader::Open(std::move(options));
    CHECK(loader.ok()) << loader.status().message();
    return std::move(loader).value();
  }

  static std::string Refusal(DataLoaderOptions options) {
    const auto loader = DataLoader::Open(std::move(options));
    if (loader.ok()) return "(accepted)";
    EXPECT_EQ(loader.status().exit_code(), 2);
    return loader.status().message();
  }

  static SampleBatch Read(const DataLoader& loader, int64_t first, int64_t count) {
    SampleBatch batch;
    batch.tokens.resize(count * loader.seq_len());
    batch.targets.resize(count * loader.seq_len());
    loader.ReadSamples(first, count, batch.tokens.data(), batch.targets.data());
    return batch;
  }
};

TEST_F(LoaderTest, PackedWindowsPredictEachTokenOnceInEveryEpoch) {
  WriteShards("t", Iota(0, 4 * 13 + 1 + 3), 10);  // 13 windows, a tail of 3; windows cross shards
  const DataLoader loader = Open(Options({{"t_*"}}));
  EXPECT_EQ(loader.samples_per_epoch(), 13);
  EXPECT_EQ(loader.dropped_tokens(0), 3);
  std::vector<std::vector<int32_t>> epochs;
  for (int epoch = 0; epoch < 3; ++epoch) {
    const SampleBatch batch = Read(loader, epoch * 13, 13);
    for (size_t i = 0; i < batch.tokens.size(); ++i) {
      ASSERT_EQ(batch.targets[i], batch.tokens[i] + 1);
    }
    std::vector<int32_t> sorted = batch.targets;
    std::sort(sorted.begin(), sorted.end());
    EXPECT_THAT(sorted, ElementsAreArray(Iota(1, 52)));
    epochs.push_back(batch.targets);
  }
  EXPECT_NE(epochs[0], epochs[1]) << "each epoch has an order of its own";
  EXPECT_NE(epochs[1], epochs[2]);
}

TEST_F(LoaderTest, OrderOfDataNeverChangesSilently) {
  WriteShards("t", Iota(0, 401));
  const DataLoader loader = Open(Options({{"t_*"}}));
  std::vector<int32_t> first, second;
  for (int64_t sample = 0; sample < 8; ++sample) {
    first.push_back(Read(loader, sample, 1).tokens[0] / 4);
    second.push_back(Read(loader, 100 + sample, 1).tokens[0] / 4);
  }
  // Golden: a change here changes what every finished run would see if it were resumed.
  EXPECT_THAT(first, ElementsAre(80, 29, 65, 73, 43, 53, 56, 24));
  EXPECT_THAT(second, ElementsAre(72, 22, 2, 91, 58, 69, 48, 38));
  DataLoaderOptions in_order = Options({{"t_*"}});
  in_order.shuffle = false;
  EXPECT_THAT(Read(Open(in_order), 100, 2).tokens, ElementsAreArray(Iota(0, 8)));
}

TEST_F(LoaderTest, AnyWorldSizeSeesTheSameList) {
  WriteShards("t", Iota(0, 4 * 31 + 1));
  const DataLoader loader = Open(Options({{"t_*"}}));
  const int64_t per_step = 7;  // divides by neither 2, 3, 4 nor 5
  const SampleBatch whole = Read(loader, 0, 5 * per_step);
  for (int world_size = 1; world_size <= 9; ++world_size) {
    std::vector<int32_t> tokens;
    for (int64_t step = 0; step < 5; ++step) {
      int64_t covered = 0;
      for (int rank = 0; rank < world_size; ++rank) {
        const SampleRange range = PartitionSamples(per_step, rank, world_size);
        EXPECT_EQ(range.begin, covered);
        EXPECT_LE(std::abs(range.count * world_size - per_step), world_size - 1) << "even";
        covered += range.count;
        const SampleBatch part = Read(loader, step * per_step + range.begin, range.count);
        tokens.insert(tokens.end(), part.tokens.begin(), part.tokens.end());
      }
      EXPECT_EQ(covered, per_step);
    }
    EXPECT_EQ(tokens, whole.tokens) << world_size << " ranks";
  }
}

TEST_F(LoaderTest, MixturesKeepProportionsAndTheirSourcesEpochs) {
  WriteShards("a", Iota(0, 4 * 10 + 1));
  WriteShards("b", Iota(1000, 4 * 3 + 1));
  WriteShards("c", Iota(2000, 4 * 50 + 1));
  const double weights[] = {0.3, 0.123, 0.577};
  const DataLoader loader =
      Open(Options({{"a_*", weights[0]}, {"b_*", weights[1]}, {"c_*", weights[2]}}));
  std::vector<int64_t> drawn(3, 0);
  for (int64_t sample = 0; sample < 20000; ++sample) {
    const DataLoader::Draw draw = loader.Locate(sample);
    ASSERT_EQ(draw.index, drawn[draw.source]++) << "draws of a source are consecutive";
    for (int s = 0; s < 3; ++s) {
      ASSERT_NEAR(static_cast<double>(drawn[s]), weights[s] * static_cast<double>(sample + 1), 3);
    }
  }
  // Source b's second epoch is exactly its three windows.
  std::multiset<int32_t> seen;
  for (int64_t sample = 0; sample < 200; ++sample) {
    const DataLoader::Draw draw = loader.Locate(sample);
    if (draw.source != 1 || draw.index < 3 || draw.index >= 6) continue;
    seen.insert(Read(loader, sample, 1).tokens[0]);
  }
  EXPECT_THAT(seen, ElementsAre(1000, 1004, 1008));
}

TEST_F(LoaderTest, SourcesWithoutWeightsAreVisitedOnceAnEpochTogether) {
  WriteShards("a", Iota(0, 4 * 10 + 1));
  WriteShards("b", Iota(1000, 4 * 3 + 1));
  WriteShards("c", Iota(2000, 4 * 50 + 1));
  const DataLoader loader = Open(Options({{"a_*"}, {"b_*"}, {"c_*"}}));
  ASSERT_EQ(loader.samples_per_epoch(), 63);
  for (int64_t epoch : {0, 1, 1000}) {
    std::set<int32_t> firsts;
    const SampleBatch batch = Read(loader, epoch * 63, 63);
    for (int64_t i = 0; i < 63; ++i) firsts.insert(batch.tokens[i * 4]);
    EXPECT_EQ(firsts.size(), 63u) << "epoch " << epoch;
  }
  // With weights, an epoch lasts until the slowest source is through: c has every second sample,
  // beginning with the first.
  EXPECT_EQ(Open(Options({{"a_*", 1}, {"c_*", 1}})).samples_per_epoch(), 99);
}

TEST_F(LoaderTest, OneDocumentARowMasksPaddingAndDropsTails) {
  // Delimiter 0 before each document: "0 11", "0 21 22 23", "0 31 32 33 34 35 36".
  WriteShards("d", {0, 11, 0, 21, 22, 23, 0, 31, 32, 33, 34, 35, 36}, 5);
  DataLoaderOptions options = Options({{"d_*"}});
  options.layout = SampleLayout::kOneDocumentPerRow;
  options.shuffle = false;
  options.delimiter_id = 0;
  options.pad_id = 9;
  const DataLoader loader = Open(options);
  EXPECT_EQ(loader.samples_per_epoch(), 3);
  EXPECT_EQ(loader.dropped_tokens(0), 2);
  const SampleBatch batch = Read(loader, 0, 3);
  EXPECT_THAT(batch.tokens, ElementsAre(0, 11, 9, 9, 0, 21, 22, 23, 0, 31, 32, 33));
  EXPECT_THAT(batch.targets, ElementsAre(11, 0, -1, -1, 21, 22, 23, 0, 31, 32, 33, 34));

  options.loss_after_token = 22;
  const SampleBatch masked = Read(Open(options), 0, 3);
  EXPECT_EQ(masked.tokens, batch.tokens);
  EXPECT_THAT(masked.targets, ElementsAre(-1, -1, -1, -1, -1, -1, 23, 0, -1, -1, -1, -1));

  // A delimiter behind each document is not doubled.
  WriteShards("e", {11, 12, 0, 21, 0});
  options.sources[0].glob = Path("e_*");
  options.loss_after_token = -1;
  const SampleBatch behind = Read(Open(options), 0, 2);
  EXPECT_THAT(behind.tokens, ElementsAre(11, 12, 9, 9, 21, 9, 9, 9));
  EXPECT_THAT(behind.targets, ElementsAre(12, 0, -1, -1, 0, -1, -1, -1));
}

TEST_F(LoaderTest, PrefetchingChangesNothing) {
  WriteShards("t", Iota(0, 4 * 31 + 1));
  const DataLoader loader = Open(Options({{"t_*"}}));
  Prefetcher prefetcher(&loader);
  prefetcher.Request(0, 5);
  for (int64_t first = 0; first < 60; first += 5) {
    const SampleBatch& batch = prefetcher.Take(first, 5);
    // A right guess, a wrong one, and none.
    if (first % 3 == 0) prefetcher.Request(first + 5, 5);
    if (first % 3 == 1) prefetcher.Request(first + 7, 4);
    const SampleBatch expected = Read(loader, first, 5);
    EXPECT_EQ(batch.tokens, expected.tokens) << first;
    EXPECT_EQ(batch.targets, expected.targets) << first;
    EXPECT_EQ(batch.first_sample, first);
  }
}

TEST_F(LoaderTest, RefusesWhatCannotBeRead) {
  WriteShards("t", Iota(0, 4));
  EXPECT_THAT(Refusal(Options({})), HasSubstr("no source"));
  EXPECT_THAT(Refusal(Options({{"t_*"}})), HasSubstr("fewer than one sample of seq_len + 1 = 5"));
  EXPECT_THAT(Refusal(Options({{"t_*"}}, 0)), HasSubstr("seq_len is 0"));
  EXPECT_THAT(Refusal(Options({{"t_*", -1}}, 2)), HasSubstr("must be positive"));
  EXPECT_THAT(Refusal(Options({{"t_*", 1}, {"t_*"}}, 2)), HasSubstr("give each one"));
  DataLoaderOptions options = Options({{"t_*"}}, 2);
  options.loss_after_token = 3;
  EXPECT_THAT(Refusal(options), HasSubstr("one document a row"));
  options.layout = SampleLayout::kOneDocumentPerRow;
  EXPECT_THAT(Refusal(options), HasSubstr("delimiter_id"));
  options.vocab_size = 3;
  options.layout = SampleLayout::kPacked;
  options.loss_after_token = -1;
  EXPECT_THAT(Refusal(options), HasSubstr("token 3 has id 3"));
}

}  // namespace
}  // namespace filigree

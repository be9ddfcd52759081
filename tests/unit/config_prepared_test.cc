// Configurations over a directory that `filigree prepare` wrote.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "data/manifest.h"
#include "tests/unit/config_testing.h"

namespace filigree {
namespace {

using ::testing::HasSubstr;

class PreparedDataTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = ::testing::TempDir() + "filigree_config_prepared";
    std::filesystem::create_directories(directory_);
    Manifest manifest;
    manifest.tokenizer.vocab_size = 300;
    manifest.tokenizer.delimiter_id = 256;
    std::ofstream(directory_ + "/manifest.json") << ManifestToJson(manifest);
    text_ = "model { layers: 1 width: 8 heads: 2 }\ndata { prepared: \"" + directory_ +
            "\" }\nphase { tokens: 524288 }\n";
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::string directory_, text_;
};

TEST_F(PreparedDataTest, GivesVocabularyAndShards) {
  const RunSpec spec = Spec(text_);
  EXPECT_EQ(spec.model.vocab_size, 300);
  EXPECT_EQ(spec.model.padded_vocab_size, 320);
  EXPECT_EQ(spec.phases[0].data.train[0].glob, directory_ + "/train_*.bin");
  EXPECT_EQ(spec.phases[0].data.validation, directory_ + "/val_*.bin");
}

TEST_F(PreparedDataTest, EffectiveTextNeedsNoManifest) {
  auto loaded = Parse(text_, {"data { layout: ONE_DOCUMENT_PER_ROW }"});
  ASSERT_TRUE(loaded.ok()) << loaded.status().message();
  EXPECT_EQ(loaded->spec.phases[0].data.delimiter_token, 256);
  std::filesystem::remove(directory_ + "/manifest.json");
  auto again = Parse(loaded->effective_text);
  ASSERT_TRUE(again.ok()) << again.status().message();
  EXPECT_EQ(again->effective_text, loaded->effective_text);
  EXPECT_EQ(again->spec.phases[0].data.delimiter_token, 256);
}

TEST_F(PreparedDataTest, AMissingManifestIsReportedAtTheField) {
  std::filesystem::remove(directory_ + "/manifest.json");
  const std::string error = Error(text_);
  EXPECT_THAT(error, ::testing::StartsWith("run.textproto:2: "));
  EXPECT_THAT(error, HasSubstr("manifest.json"));
  EXPECT_THAT(error, HasSubstr("filigree prepare"));
}

TEST_F(PreparedDataTest, APhaseWithItsOwnDirectoryTakesItsOwnShards) {
  const RunSpec spec =
      Spec(text_, {"model { vocab_size: 300 } phase { steps: 1 data { prepared: \"x\" } }"});
  EXPECT_EQ(spec.phases[0].data.train[0].glob, "x/train_*.bin");
}

}  // namespace
}  // namespace filigree

#include <gmock/gmock.h>
#include <sys/resource.h>

#include <csignal>

#include "data/tokenizer.h"
#include "tests/unit/checkpoint_testing.h"
#include "trainer/checkpoint/manifest.h"

namespace filigree {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// The segment as a reader must give it back: padding is zero, whatever was added.
std::vector<float> WithoutPadding(const Parameter& parameter, std::vector<float> segment) {
  const auto cells = parameter.layout.LogicalIndices();
  for (size_t slot = 0; slot < segment.size(); ++slot) {
    if (slot >= cells.size() || cells[slot] < 0) segment[slot] = 0;
  }
  return segment;
}

class CheckpointTest : public DirectoryTest {
 protected:
  CheckpointTest() {
    Write("tokenizer/tokenizer.json", MakeByteTokenizer()->file_bytes());
    Write("tokenizer/train_000000.bin", "a shard, which no checkpoint takes along");
  }

  std::string WriteStep(int64_t step) {
    const std::string directory = CheckpointDirectory(Path("run"), step);
    const Status status = WriteSmall(directory, info_, Path("tokenizer"));
    EXPECT_TRUE(status.ok()) << status.message();
    return directory;
  }
  std::vector<std::string> Steps() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(Path("run/checkpoints"))) {
      names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }

  CheckpointInfo info_ = SmallInfo(ModelFamily::kLlama, /*tied_head=*/false, /*sparse=*/true);
};

TEST_F(CheckpointTest, RoundTripKeepsEverythingButPadding) {
  const auto reader = CheckpointReader::Open(WriteStep(1200));
  ASSERT_TRUE(reader.ok()) << reader.status().message();
  const CheckpointInfo& read = (*reader)->info();
  EXPECT_EQ(read.step, info_.step);
  EXPECT_EQ(read.tokens, info_.tokens);
  EXPECT_EQ(read.phase, info_.phase);
  EXPECT_EQ(read.world_size, info_.world_size);
  EXPECT_EQ(read.seed, info_.seed);
  EXPECT_TRUE(read.has_moments);
  EXPECT_EQ(read.model, info_.model);
  EXPECT_EQ(read.config_text, info_.config_text);
  ASSERT_EQ(read.parameters.size(), info_.parameters.size());
  int edge_blocks = 0, padded = 0;
  for (size_t i = 0; i < read.parameters.size(); ++i) {
    const Parameter &ours = info_.parameters[i], &theirs = read.parameters[i];
    SCOPED_TRACE(ours.name);
    EXPECT_EQ(theirs.name, ours.name);
    EXPECT_EQ(theirs.shape, ours.shape);
    EXPECT_TRUE(theirs.layout == ours.layout);
    EXPECT_EQ(theirs.padding_count, ours.padding_count);
    EXPECT_EQ(theirs.decay, ours.decay);
    EXPECT_EQ(theirs.sparsifiable, ours.sparsifiable);
    EXPECT_EQ(theirs.init, ours.init);
    EXPECT_EQ(theirs.init_std, ours.init_std);
    edge_blocks += ours.layout.stored_count() != ours.layout.nonzero_count();
    padded += ours.padding_count > 0;
    const int index = static_cast<int>(i);
    for (auto array : {CheckpointArray::kMaster, CheckpointArray::kM, CheckpointArray::kV}) {
      const auto segment = (*reader)->ReadSegment(index, array);
      ASSERT_TRUE(segment.ok()) << segment.status().message();
      EXPECT_EQ(*segment, WithoutPadding(ours, SegmentOf(ours, array)));
    }
    EXPECT_EQ(*(*reader)->ReadDense(index), DenseOf(ours));
  }
  EXPECT_GT(edge_blocks, 0);
  EXPECT_EQ(padded, 2);
}

TEST_F(CheckpointTest, TakesTheTokenizerAndNothingElse) {
  const auto reader = CheckpointReader::Open(WriteStep(1));
  ASSERT_TRUE(reader.ok());
  EXPECT_EQ(FilesBelow((*reader)->tokenizer_dir()).size(), 1u);
  EXPECT_EQ((*LoadTokenizer((*reader)->tokenizer_dir()))->vocab_size(), 257);
}

TEST_F(CheckpointTest, WithoutMomentsTokenizerAndConfig) {
  info_.has_moments = false;
  info_.config_text.clear();
  ASSERT_TRUE(WriteSmall(Path("c"), info_).ok());
  const auto reader = CheckpointReader::Open(Path("c"));
  ASSERT_TRUE(reader.ok()) << reader.status().message();
  EXPECT_FALSE((*reader)->info().has_moments);
  EXPECT_EQ((*reader)->tokenizer_dir(), "");
  EXPECT_EQ((*reader)->info().config_text, "");
  EXPECT_EQ(FilesBelow(Path("c")).size(), 3u);
}

// One flipped bit anywhere in any file: refused, by name, with what to do.
TEST_F(CheckpointTest, EveryFileIsGuarded) {
  const std::string older = WriteStep(100);
  const std::string directory = WriteStep(200);
  const auto files = FilesBelow(directory);
  ASSERT_EQ(files.size(), 6u);
  for (const auto& [path, content] : files) {
    const size_t stride = std::max<size_t>(1, content.size() / 40);
    for (size_t at = 0; at < content.size(); at += stride) {
      std::string damaged = content;
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << (at % 8)));
      std::ofstream(path, std::ios::binary) << damaged;
      const auto reader = CheckpointReader::Open(directory);
      ASSERT_FALSE(reader.ok()) << path << " at " << at;
      EXPECT_EQ(reader.status().exit_code(), 2);
      EXPECT_THAT(reader.status().message(), StartsWith(path));
      EXPECT_THAT(reader.status().message(), HasSubstr("take an older checkpoint, " + older));
    }
    std::ofstream(path, std::ios::binary) << content;
  }
  EXPECT_TRUE(CheckpointReader::Open(directory).ok());
}

TEST_F(CheckpointTest, DamageIsDescribed) {
  const std::string directory = WriteStep(100);
  const std::string path = directory + "/model.safetensors";
  const std::string content = *ReadFile(path);
  std::string damaged = content;
  damaged.back() ^= 1;
  std::ofstream(path, std::ios::binary) << damaged;
  const std::string message = CheckpointReader::Open(directory).status().message();
  EXPECT_THAT(message, HasSubstr("its checksum is " + HashHex(Hash64(damaged)) + ", expected " +
                                 HashHex(Hash64(content))));
  EXPECT_THAT(message, HasSubstr("no older checkpoint lies beside it"));
  fs::resize_file(path, content.size() - 4);
  EXPECT_THAT(CheckpointReader::Open(directory).status().message(),
              HasSubstr("bytes, expected " + std::to_string(content.size())));
  fs::remove(path);
  EXPECT_THAT(CheckpointReader::Open(directory).status().message(), StartsWith(path));
}

TEST_F(CheckpointTest, AnotherVersionIsNamedBesideOurs) {
  const std::string text = FormatManifest(info_, {});
  ASSERT_TRUE(ParseManifest(text, "m").ok());
  std::string later = text;
  const std::string version = "\"version\": 1,";
  later.replace(later.find(version), version.size(), "\"version\": 7,");
  EXPECT_THAT(ParseManifest(later, "m").status().message(), HasSubstr("is damaged"));
  constexpr size_t kDigits = 16;
  const size_t place = later.find("xxh64\": \"") + 9;
  later.replace(place, kDigits, kDigits, '0');
  later.replace(place, kDigits, HashHex(Hash64(later)));
  const std::string message = ParseManifest(later, "m").status().message();
  EXPECT_THAT(message, HasSubstr("version 7"));
  EXPECT_THAT(message, HasSubstr("reads filigree-checkpoint version 1"));
}

TEST_F(CheckpointTest, APartialOneIsNotSeenAndReplacedLater) {
  const std::string complete = WriteStep(100);
  {
    auto writer = CheckpointWriter::Begin(CheckpointDirectory(Path("run"), 200), info_, "");
    ASSERT_TRUE(writer.ok());
    ASSERT_TRUE(AddAll(info_, writer->get()).ok());
    EXPECT_THAT(Steps(), ElementsAre(".step_00000200.partial", "step_00000100"));
    EXPECT_EQ(NewestCheckpoint(Path("run")), complete);
  }
  EXPECT_THAT(Steps(), ElementsAre("step_00000100"));
  // As a killed process leaves it.
  Write("run/checkpoints/.step_00000200.partial/manifest.json", "{}");
  EXPECT_EQ(NewestCheckpoint(Path("run")), complete);
  const std::string second = WriteStep(200);
  EXPECT_EQ(NewestCheckpoint(Path("run")), second);
  EXPECT_THAT(Steps(), ElementsAre("step_00000100", "step_00000200"));
}

TEST_F(CheckpointTest, AStepWrittenAgainReplacesTheOldOne) {
  const std::string directory = WriteStep(100);
  info_.tokens = 5;
  EXPECT_EQ(WriteStep(100), directory);
  EXPECT_EQ((*CheckpointReader::Open(directory))->info().tokens, 5);
  EXPECT_THAT(Steps(), ElementsAre("step_00000100"));
}

TEST_F(CheckpointTest, OldOnesGoAndProtectedOnesStay) {
  for (int64_t step : {1, 2, 3, 4, 100000000}) WriteStep(step);
  Write("run/checkpoints/.step_00000009.partial/x", "");
  Write("run/checkpoints/notes.txt", "");
  ASSERT_TRUE(RemoveOldCheckpoints(Path("run"), 0, {}).ok());
  EXPECT_EQ(Steps().size(), 6u);  // the left-over one is gone
  const int64_t kProtected[] = {2};
  ASSERT_TRUE(RemoveOldCheckpoints(Path("run"), 2, kProtected).ok());
  EXPECT_THAT(Steps(),
              ElementsAre("notes.txt", "step_00000002", "step_00000004", "step_100000000"));
  EXPECT_EQ(NewestCheckpoint(Path("run")), Path("run/checkpoints/step_100000000"));
}

TEST_F(CheckpointTest, ResolvesRunsAndCheckpoints) {
  const std::string directory = WriteStep(100);
  EXPECT_EQ(*ResolveCheckpoint(Path("run")), directory);
  EXPECT_EQ(*ResolveCheckpoint(directory), directory);
  EXPECT_THAT(ResolveCheckpoint(Path("none")).status().message(), HasSubstr("does not exist"));
  EXPECT_THAT(ResolveCheckpoint(Path("tokenizer")).status().message(),
              HasSubstr("is neither a checkpoint"));
  fs::create_directories(Path("young/checkpoints"));
  EXPECT_THAT(ResolveCheckpoint(Path("young")).status().message(),
              HasSubstr("no complete checkpoint yet"));
}

TEST_F(CheckpointTest, RefusesPlacesThatAreTaken) {
  const std::string note = Write("mine/note.txt", "keep me");
  const auto taken = CheckpointWriter::Begin(Path("mine"), info_, "");
  EXPECT_EQ(taken.status().code(), StatusCode::kInvalidInput);
  EXPECT_THAT(taken.status().message(), HasSubstr("exists and is no checkpoint"));
  const auto below_file = CheckpointWriter::Begin(note + "/c", info_, "");
  EXPECT_EQ(below_file.status().code(), StatusCode::kInvalidInput);
  EXPECT_THAT(below_file.status().message(), HasSubstr(note));
  const auto no_tokenizer = CheckpointWriter::Begin(Path("c"), info_, Path("mine"));
  EXPECT_THAT(no_tokenizer.status().message(), HasSubstr("has no tokenizer.model"));
  EXPECT_FALSE(fs::exists(Path("c")));
  EXPECT_EQ(*ReadFile(note), "keep me");
}

// A limit on the file size stands in for a full disk: write() fails half way.
TEST_F(CheckpointTest, AFailedWriteIsTheMachinesAndLeavesNothing) {
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit old = {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  rlimit small = old;
  small.rlim_cur = 8192;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const Status status = WriteSmall(Path("c"), info_);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &old), 0);
  EXPECT_EQ(status.code(), StatusCode::kMachine) << status.message();
  EXPECT_THAT(status.message(), HasSubstr("safetensors: writing failed"));
  EXPECT_FALSE(fs::exists(Path("c")));
  EXPECT_FALSE(fs::exists(Path(".c.partial")));
}

}  // namespace
}  // namespace filigree

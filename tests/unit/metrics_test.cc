#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "trainer/metrics/console.h"
#include "trainer/metrics/event_writer.h"
#include "trainer/metrics/metrics_writer.h"
#include "trainer/metrics/numbers.h"
#include "trainer/metrics/progress_bar.h"

namespace filigree {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class TemporaryDirectory {
 public:
  explicit TemporaryDirectory(const std::string& name) : path_(::testing::TempDir() + name) {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::string ReadText(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

std::string Hex(const std::string& bytes) {
  std::string hex;
  for (const unsigned char byte : bytes) {
    char digits[3];
    std::snprintf(digits, sizeof(digits), "%02x", byte);
    hex += digits;
  }
  return hex;
}

StepMetrics AtStep(int64_t step) {
  StepMetrics metrics;
  metrics.step = step;
  metrics.tokens = 256 * step;
  metrics.loss = 3.25;
  metrics.lr = 0.0003;
  metrics.grad_norm = 0.5;
  metrics.sparsity = 0.75;
  metrics.tokens_per_second = 12345;
  metrics.step_ms = 41.25;
  metrics.mfu_executed = 0.375;
  metrics.exchanged_bytes = 1000;
  metrics.memory_bytes = 2000;
  return metrics;
}

TEST(MetricsWriterTest, TrainingLine) {
  EXPECT_EQ(ToJsonLine(AtStep(2)),
            R"({"step":2,"tokens":512,"loss":3.25,"lr":3e-04,"grad_norm":0.5,"sparsity":0.75,)"
            R"("tokens_per_second":12345,"step_ms":41.25,"mfu_dense_equivalent":null,)"
            R"("mfu_executed":0.375,"exchanged_bytes":1000,"memory_bytes":2000,)"
            R"("skipped_steps":0})");
}

TEST(MetricsWriterTest, NumbersThatAreNotFiniteAreNullAndSaidSo) {
  StepMetrics metrics = AtStep(1);
  metrics.loss = std::nan("");
  metrics.grad_norm = -std::numeric_limits<double>::infinity();
  const std::string line = ToJsonLine(metrics);
  EXPECT_THAT(line, HasSubstr(R"("loss":null,"loss_is":"nan","lr":)"));
  EXPECT_THAT(line, HasSubstr(R"("grad_norm":null,"grad_norm_is":"-inf","sparsity":)"));
}

TEST(MetricsWriterTest, OtherLines) {
  EXPECT_EQ(ToJsonLine(EvaluationMetrics{.step = 5, .val_loss = 2.5, .val_tokens = 100}),
            R"({"step":5,"val_loss":2.5,"val_tokens":100})");
  EXPECT_EQ(ToJsonLine(EvaluationMetrics{
                .step = 5, .val_loss = 2.5, .val_tokens = 100, .val_unigram_entropy = 5.5}),
            R"({"step":5,"val_loss":2.5,"val_tokens":100,"val_unigram_entropy":5.5})");
  EXPECT_EQ(
      ToJsonLine(TopologyMetrics{.step = 7,
                                 .topology = "rigl",
                                 .dropped = 1,
                                 .grown = 2,
                                 .stored_values = 3,
                                 .exchanged_bytes = 4}),
      R"({"step":7,"topology":"rigl","dropped":1,"grown":2,"stored_values":3,"exchanged_bytes":4})");
  EXPECT_EQ(ToJsonLine(PhaseMetrics{.step = 7, .phase = "a \"b\"\n\\"}),
            R"({"step":7,"phase":"a \u0022b\u0022\u000a\u005c"})");
}

TEST(MetricsWriterTest, AResumedRunRepeatsNoStep) {
  TemporaryDirectory run("filigree_metrics_resume");
  const std::string path = run.path() + "/metrics.jsonl";
  {
    auto writer = MetricsWriter::Open(run.path(), 0);
    ASSERT_TRUE(writer.ok()) << writer.status().message();
    for (int step = 1; step <= 12; ++step) ASSERT_TRUE((*writer)->Write(AtStep(step)).ok());
    // Visible while the run goes on.
    EXPECT_THAT(ReadText(path), HasSubstr(ToJsonLine(AtStep(12))));
  }
  std::ofstream(path, std::ios::app) << R"({"step":1,"tokens":2)";  // torn by a crash
  {
    auto writer = MetricsWriter::Open(run.path(), 2);
    ASSERT_TRUE(writer.ok()) << writer.status().message();
    ASSERT_TRUE((*writer)->Write(AtStep(3)).ok());
  }
  std::string expected;
  for (int step = 1; step <= 3; ++step) expected += ToJsonLine(AtStep(step)) + "\n";
  EXPECT_EQ(ReadText(path), expected);
  ASSERT_TRUE(MetricsWriter::Open(run.path(), 0).ok());
  EXPECT_EQ(ReadText(path), "");
}

TEST(MetricsWriterTest, AMissingDirectoryIsAnError) {
  auto writer = MetricsWriter::Open("/no/such/run", 0);
  ASSERT_FALSE(writer.ok());
  EXPECT_THAT(writer.status().message(), HasSubstr("/no/such/run/metrics.jsonl"));
}

TEST(EventWriterTest, Crc32cKnownAnswer) { EXPECT_EQ(Crc32c("123456789"), 0xE3069283u); }

// Bytes that TensorFlow's own writer gave.
TEST(EventWriterTest, GoldenRecords) {
  EXPECT_EQ(Hex(FileVersionRecord(1700000000.0)),
            "1800000000000000a37f4b220900000040fc54d9411a0d627261696e2e4576656e743a32eced8f9d");
  EXPECT_EQ(Hex(ScalarRecord(1700000000.0, 10, "loss", 2.5f)),
            "1a00000000000000129bd82d0900000040fc54d941100a2a0d0a0b0a046c6f73731500002040663cd7c1");
}

TEST(EventWriterTest, StepsBeyondOneByteAreVarints) {
  const std::string record = Hex(ScalarRecord(0, 300, "t", 1.0f));
  EXPECT_THAT(record, HasSubstr("10ac02"
                                "2a0a0a080a0174150000803f"));
}

TEST(EventWriterTest, EachStartWritesItsOwnFile) {
  TemporaryDirectory run("filigree_events");
  const std::string tb = run.path() + "/tb";
  auto first = EventWriter::Create(tb), second = EventWriter::Create(tb);
  ASSERT_TRUE(first.ok()) << first.status().message();
  ASSERT_TRUE(second.ok()) << second.status().message();
  EXPECT_NE((*first)->path(), (*second)->path());
  ASSERT_TRUE((*first)->WriteScalar(10, "train/loss", 2.5).ok());
  ASSERT_TRUE((*first)->Flush().ok());
  const std::string bytes = ReadText((*first)->path());
  constexpr size_t kVersionBytes = 8 + 4 + 24 + 4;
  ASSERT_GT(bytes.size(), kVersionBytes);
  EXPECT_THAT(bytes.substr(0, kVersionBytes), HasSubstr("brain.Event:2"));
  const std::string scalar = ScalarRecord(0, 10, "train/loss", 2.5f);
  EXPECT_EQ(bytes.size(), kVersionBytes + scalar.size());
  EXPECT_THAT((*first)->path(), HasSubstr("/tb/events.out.tfevents."));
}

TEST(ConsoleTest, StepLine) {
  EXPECT_EQ(StepLine(AtStep(120), 2000, 200.0),
            "step  120/2000  tokens 30.7k  loss 3.2500  lr 3.00e-04  grad 0.500  "
            "sparsity 75.0 %  12.3k tok/s  41.2 ms  MFU 37.5 %  ETA 3m 20s");
  StepMetrics metrics = AtStep(1);
  metrics.mfu_executed.reset();
  metrics.skipped_steps = 2;
  EXPECT_EQ(StepLine(metrics, 5, std::nullopt),
            "step 1/5  tokens 256  loss 3.2500  lr 3.00e-04  grad 0.500  sparsity 75.0 %  "
            "12.3k tok/s  41.2 ms  skipped 2");
}

TEST(ConsoleTest, EvaluationLine) {
  EvaluationMetrics metrics{.step = 250, .val_loss = 3.1042, .val_tokens = 1048576};
  EXPECT_EQ(EvaluationLine(metrics), "step 250  val loss 3.1042  perplexity 22.29  (1.05M tokens)");
  metrics.val_unigram_entropy = 5.231;
  EXPECT_THAT(EvaluationLine(metrics), HasSubstr("unigram entropy 5.2310)"));
}

TEST(ConsoleTest, LogsTheFirstTheLastAndEveryNthStep) {
  ::testing::internal::CaptureStderr();
  {
    Console console(/*total_steps=*/25, /*steps_done=*/3, /*log_every_steps=*/10);
    for (int step = 4; step <= 25; ++step) console.Step(AtStep(step));
  }
  std::istringstream lines(::testing::internal::GetCapturedStderr());
  std::vector<std::string> steps;
  for (std::string line; std::getline(lines, line);) steps.push_back(line.substr(0, 10));
  // Captured stderr is no terminal: plain lines and no bar.
  EXPECT_THAT(steps, ElementsAre("step  4/25", "step 10/25", "step 20/25", "step 25/25"));
}

TEST(ProgressBarTest, FitsTheTerminal) {
  EXPECT_EQ(RenderBar("train", 0.5, "step 1/2", {.columns = 80}),
            "train  50 % ###############............... step 1/2");
  EXPECT_EQ(RenderBar("train", 1.0, "step 2/2", {.columns = 31}), "train 100 % ######### step 2/2");
  EXPECT_EQ(RenderBar("train", 0.5, "a long text", {.columns = 20}), "train  50 %  a long");
  EXPECT_EQ(RenderBar("t", 0.999, "", {.columns = 10}), "t  99 % ");
  const std::string colored =
      RenderBar("t", 0.5, "", {.columns = 18, .color = true, .unicode = true});
  EXPECT_EQ(colored,
            "t  50 % \x1b[36m\u2501\u2501\u2501\u2501\u2501\x1b[0m\x1b[2m"
            "\u2500\u2500\u2500\u2500\x1b[0m");
}

TEST(NumbersTest, Counts) {
  EXPECT_EQ(FormatCount(0), "0");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(1000), "1.00k");
  EXPECT_EQ(FormatCount(61.4e6), "61.4M");
  EXPECT_EQ(FormatCount(999999), "1.00M");
  EXPECT_EQ(FormatCount(123456), "123k");
  EXPECT_EQ(FormatCount(1.37e9), "1.37B");
  EXPECT_EQ(FormatBytes(512), "512 B");
  EXPECT_EQ(FormatBytes(61.4e6), "61.4 MB");
}

TEST(NumbersTest, Durations) {
  EXPECT_EQ(FormatDuration(0.0421), "42 ms");
  EXPECT_EQ(FormatDuration(12.34), "12.3 s");
  EXPECT_EQ(FormatDuration(59.96), "1m 00s");
  EXPECT_EQ(FormatDuration(200), "3m 20s");
  EXPECT_EQ(FormatDuration(3720), "1h 02m");
  EXPECT_EQ(FormatDuration(2 * 86400 + 3 * 3600), "2d 03h");
  EXPECT_EQ(FormatDuration(std::nan("")), "unknown");
}

TEST(NumbersTest, ExactNumbersReadBack) {
  for (const double value : {0.1, 1e300, -2.5e-8, 123456789.123}) {
    EXPECT_EQ(std::stod(FormatExact(value)), value);
  }
}

}  // namespace
}  // namespace filigree

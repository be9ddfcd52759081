#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "trainer/metrics/metrics_writer.h"
#include "trainer/report/report.h"

namespace filigree {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Two phases of ten steps; evaluations at the ends of phases.
void WriteRun(const std::string& directory, const std::string& name, double sparsity) {
  std::filesystem::create_directories(directory);
  std::ofstream(directory + "/config.textproto") << "# header\nname: \"" << name << "\"\nseed: 1\n";
  std::ofstream metrics(directory + "/metrics.jsonl");
  for (int step = 0; step < 20; ++step) {
    if (step % 10 == 0) {
      metrics << ToJsonLine(PhaseMetrics{step, step == 0 ? "sparse" : "dense <tail>"}) << "\n";
    }
    StepMetrics line;
    line.step = step + 1;
    line.tokens = 1000 * line.step;
    line.loss = step == 5 ? std::numeric_limits<double>::quiet_NaN() : 5.0 - 0.1 * step;
    line.lr = 1e-3;
    line.sparsity = step < 10 ? sparsity : 0;
    line.tokens_per_second = 1e4;
    line.step_ms = 100;
    line.exchanged_bytes = 4096;
    metrics << ToJsonLine(line) << "\n";
    if (line.step % 10 == 0) {
      metrics << ToJsonLine(EvaluationMetrics{line.step, 5.25 - 0.1 * step, 100, 5.5}) << "\n";
    }
  }
  std::ofstream(directory + "/layers.json")
      << R"([{"name":"layers.0.mlp.up.weight","sparsity":)" << sparsity
      << R"(,"stored":250,"logical":1000},{"name":"layers.1.mlp.up.weight","sparsity":)" << sparsity
      << R"(,"stored":250,"logical":1000}])";
}

int CountOf(const std::string& text, const std::string& part) {
  int count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

class ReportTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::remove_all(root_);
    WriteRun(root_ + "/a", "blocks & friends", 0.75);
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  std::string Report(const std::vector<std::string>& runs) {
    const std::string path = root_ + "/report.html";
    const Status written = WriteReport(runs, path);
    EXPECT_TRUE(written.ok()) << written.message();
    std::ostringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
  }
  static nlohmann::json DataOf(const std::string& page) {
    const std::string begin = "id=\"data\">", end = "</script>";
    const size_t first = page.find(begin) + begin.size();
    return nlohmann::json::parse(page.substr(first, page.find(end, first) - first));
  }

  const std::string root_ = ::testing::TempDir() + "filigree_report";
};

TEST_F(ReportTest, HoldsChartsSummaryAndConfiguration) {
  const std::string page = Report({root_ + "/a"});
  EXPECT_THAT(page, HasSubstr("<title>blocks &amp; friends"));
  for (const char* id : {"loss", "lr", "sparsity", "throughput", "exchange", "layers-0"}) {
    EXPECT_THAT(page, HasSubstr("<figure class=\"chart")) << id;
    EXPECT_EQ(CountOf(page, "id=\"" + std::string(id) + "\""), 1) << id;
    EXPECT_EQ(CountOf(page, "<title id=\"" + std::string(id) + "-title\">"), 1) << id;
    EXPECT_EQ(CountOf(page, "<desc id=\"" + std::string(id) + "-desc\">"), 1) << id;
  }
  EXPECT_THAT(page, HasSubstr("unigram entropy 5.50"));
  // The row of the sparse phase: steps, tokens, losses, sparsity, stored weights.
  EXPECT_THAT(page, HasSubstr("<td class=\"text\">sparse</td><td>10</td><td>10.0k</td>"
                              "<td>4.1000</td><td>4.3500</td><td>75.0 %</td><td>500</td>"));
  EXPECT_THAT(page, HasSubstr("<td class=\"text\">dense &lt;tail&gt;</td><td>20</td>"));
  EXPECT_THAT(page, HasSubstr("<td>0.0 %</td><td>2.00k</td>"));
  EXPECT_THAT(page, HasSubstr("name: &quot;blocks &amp; friends&quot;"));
}

TEST_F(ReportTest, IsSelfContained) {
  const std::string page = Report({root_ + "/a"});
  EXPECT_EQ(CountOf(page, "http"), 1);  // the SVG name space that the script needs
  EXPECT_THAT(page, HasSubstr("http://www.w3.org/2000/svg"));
  EXPECT_THAT(page, Not(HasSubstr(" src=")));
  EXPECT_THAT(page, Not(HasSubstr("<link")));
}

TEST_F(ReportTest, EmbedsTheDataWithGapsAsNull) {
  const nlohmann::json data = DataOf(Report({root_ + "/a"}));
  ASSERT_EQ(data.size(), 5u);
  const nlohmann::json& training = data[0].at("series")[0];
  ASSERT_EQ(training.at("y").size(), 20u);
  EXPECT_TRUE(training.at("y")[5].is_null());
  EXPECT_EQ(training.at("x")[19], 20000);
  const nlohmann::json& validation = data[0].at("series")[1];
  EXPECT_EQ(validation.at("x"), nlohmann::json({10000, 20000}));
}

TEST_F(ReportTest, ALineBreaksAtAGap) {
  const std::string page = Report({root_ + "/a"});
  const size_t begin = page.find("<path d=\"", page.find("blocks &amp; friends, training</title>"));
  const std::string path = page.substr(begin + 9, page.find("\"/>", begin) - begin - 9);
  EXPECT_EQ(CountOf(path, "M"), 2);
  EXPECT_EQ(CountOf(path, "L"), 17);
}

TEST_F(ReportTest, ComparesRunsAndTellsEqualNamesApart) {
  WriteRun(root_ + "/b", "blocks & friends", 0);
  const std::string page = Report({root_ + "/a", root_ + "/b"});
  EXPECT_THAT(page, HasSubstr("<h1>2 runs compared</h1>"));
  EXPECT_THAT(page, HasSubstr("<ul class=\"legend\">"));
  EXPECT_THAT(page, HasSubstr("blocks &amp; friends (" + root_ + "/b)"));
  EXPECT_EQ(CountOf(page, "<details>"), 2);
  EXPECT_EQ(DataOf(page)[1].at("series").size(), 2u);
  EXPECT_THAT(page, Not(HasSubstr("id=\"layers-1\""))) << "a dense run has no sparsity to show";
}

TEST_F(ReportTest, ThinsLongSeriesButKeepsSpikes) {
  std::ofstream metrics(root_ + "/a/metrics.jsonl");
  for (int step = 1; step <= 10000; ++step) {
    StepMetrics line;
    line.step = line.tokens = step;
    line.loss = step == 7777 ? 99 : 2;
    metrics << ToJsonLine(line) << "\n";
  }
  metrics.close();
  const nlohmann::json loss = DataOf(Report({root_ + "/a"}))[0].at("series")[0].at("y");
  EXPECT_EQ(loss.size(), 1200u);
  EXPECT_EQ(std::count(loss.begin(), loss.end(), 99), 1);
}

TEST_F(ReportTest, ReadsARunThatIsWritingItsLastLine) {
  std::ofstream(root_ + "/a/metrics.jsonl", std::ios::app) << R"({"step":21,"tok)";
  EXPECT_EQ(DataOf(Report({root_ + "/a"}))[0].at("series")[0].at("x").size(), 20u);
}

TEST_F(ReportTest, ErrorsNameTheFileAndTheMend) {
  const std::string out = root_ + "/report.html";
  Status status = WriteReport({root_ + "/none"}, out);
  EXPECT_EQ(status.exit_code(), 2);
  EXPECT_THAT(status.message(), HasSubstr(root_ + "/none/metrics.jsonl"));
  EXPECT_THAT(status.message(), HasSubstr("name a run directory"));

  std::ofstream(root_ + "/a/metrics.jsonl", std::ios::app) << "no json\n";
  status = WriteReport({root_ + "/a"}, out);
  EXPECT_EQ(status.exit_code(), 2);
  EXPECT_THAT(status.message(), HasSubstr("/a/metrics.jsonl:25: damaged"));

  std::ofstream(root_ + "/a/metrics.jsonl") << ToJsonLine(PhaseMetrics{0, "sparse"}) << "\n";
  EXPECT_THAT(WriteReport({root_ + "/a"}, out).message(), HasSubstr("no step is done yet"));
  EXPECT_EQ(WriteReport({}, out).exit_code(), 2);
  EXPECT_FALSE(std::filesystem::exists(out)) << "a failed report writes nothing";
}

}  // namespace
}  // namespace filigree

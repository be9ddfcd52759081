#include "trainer/report/run_data.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>

#include "data/file_io.h"

namespace filigree::report {
namespace {

using Json = nlohmann::json;

constexpr double kMissing = std::numeric_limits<double>::quiet_NaN();

double Number(const Json& line, const char* name) {
  const auto found = line.find(name);
  return found != line.end() && found->is_number() ? found->get<double>() : kMissing;
}

class MetricsReader {
 public:
  explicit MetricsReader(RunData* run) : run_(run) {}

  // Evaluations and phases know no tokens of their own: they happen where training stands.
  void Add(const Json& line) {
    if (line.contains("phase")) return BeginPhase(line.at("phase").get<std::string>());
    if (run_->phases.empty()) BeginPhase("");
    PhaseData& phase = run_->phases.back();
    if (line.contains("val_loss")) {
      phase.evaluations.push_back({Number(line, "step"), tokens_, Number(line, "val_loss")});
      const double entropy = Number(line, "val_unigram_entropy");
      if (!std::isnan(entropy)) run_->unigram_entropy = entropy;
    } else if (line.contains("loss")) {
      tokens_ = Number(line, "tokens");
      phase.steps.push_back({.step = Number(line, "step"),
                             .tokens = tokens_,
                             .loss = Number(line, "loss"),
                             .lr = Number(line, "lr"),
                             .sparsity = Number(line, "sparsity"),
                             .tokens_per_second = Number(line, "tokens_per_second"),
                             .step_ms = Number(line, "step_ms"),
                             .exchanged_bytes = Number(line, "exchanged_bytes")});
    }
  }

 private:
  void BeginPhase(const std::string& name) {
    // A resumed run says again which phase it is in.
    if (!run_->phases.empty() && run_->phases.back().name == name) return;
    run_->phases.push_back({.name = name, .begin_tokens = tokens_, .steps = {}, .evaluations = {}});
  }

  RunData* run_;
  double tokens_ = 0;
};

Status ReadMetrics(const std::string& path, RunData* run) {
  const auto text = ReadFile(path);
  if (!text.ok()) {
    return InvalidInput(text.status().message() +
                        "; name a run directory that `filigree train` wrote");
  }
  MetricsReader reader(run);
  std::string_view rest = *text;
  // A run that trains may be in the middle of its last line.
  for (int number = 1; rest.find('\n') != std::string_view::npos; ++number) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(line.size() + 1);
    try {
      reader.Add(Json::parse(line));
    } catch (const Json::exception& error) {
      return InvalidInput(path + ":" + std::to_string(number) + ": damaged (" + error.what() +
                          "); remove the line");
    }
  }
  const bool trained = std::any_of(run->phases.begin(), run->phases.end(),
                                   [](const PhaseData& phase) { return !phase.steps.empty(); });
  if (!trained) return InvalidInput(path + ": no step is done yet; wait for the first one");
  return OkStatus();
}

Status ReadLayers(const std::string& path, RunData* run) {
  if (!std::filesystem::exists(path)) return OkStatus();
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  try {
    for (const Json& layer : Json::parse(text)) {
      run->layers.push_back({.name = layer.at("name").get<std::string>(),
                             .sparsity = layer.at("sparsity").get<double>(),
                             .stored = layer.at("stored").get<double>(),
                             .logical = layer.at("logical").get<double>()});
    }
  } catch (const Json::exception& error) {
    return InvalidInput(path + ": damaged (" + error.what() + "); remove the file");
  }
  return OkStatus();
}

// The effective configuration is printed field by field, the name at the left margin.
std::string NameIn(const std::string& config_text) {
  constexpr std::string_view kBegin = "\nname: \"";
  const std::string text = "\n" + config_text;
  const size_t begin = text.find(kBegin);
  if (begin == std::string::npos) return "run";
  const size_t first = begin + kBegin.size();
  return text.substr(first, text.find("\"\n", first) - first);
}

StatusOr<RunData> ReadRun(const std::string& directory) {
  RunData run;
  run.directory = directory;
  RETURN_IF_ERROR(ReadMetrics(directory + "/metrics.jsonl", &run));
  ASSIGN_OR_RETURN(run.config_text, ReadFile(directory + "/config.textproto"));
  RETURN_IF_ERROR(ReadLayers(directory + "/layers.json", &run));
  run.label = NameIn(run.config_text);
  return run;
}

}  // namespace

StatusOr<std::vector<RunData>> ReadRuns(const std::vector<std::string>& directories) {
  if (directories.empty()) return InvalidInput("name at least one run directory");
  std::vector<RunData> runs;
  for (const std::string& directory : directories) {
    ASSIGN_OR_RETURN(RunData run, ReadRun(directory));
    runs.push_back(std::move(run));
  }
  std::vector<std::string> names;
  for (const RunData& run : runs) names.push_back(run.label);
  for (RunData& run : runs) {
    if (std::count(names.begin(), names.end(), run.label) > 1) {
      run.label += " (" + run.directory + ")";
    }
  }
  return runs;
}

}  // namespace filigree::report

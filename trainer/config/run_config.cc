#include "trainer/config/run_config.h"

#include <google/protobuf/text_format.h>

#include "data/file_io.h"
#include "trainer/config/complete.h"
#include "trainer/config/merge.h"
#include "trainer/config/parse.h"
#include "trainer/config/to_spec.h"
#include "trainer/config/validate.h"

namespace filigree {
namespace {

std::string EffectiveText(const config::RunConfig& config) {
  std::string text;
  google::protobuf::TextFormat::PrintToString(config, &text);
  return "# proto-file: configs/run.proto\n# proto-message: filigree.config.RunConfig\n" + text;
}

}  // namespace

StatusOr<LoadedConfig> ParseRunConfig(const std::string& text, const std::string& source,
                                      const std::vector<std::string>& overrides,
                                      const KnownNames& known) {
  std::vector<std::string> source_names = {source};
  for (size_t i = 1; i <= overrides.size(); ++i) {
    source_names.push_back("--override " + std::to_string(i));
  }
  config::Problems problems(source_names);
  config::Origins origins;
  config::RunConfig run;
  bool whole = config::ParseSource(text, 0, &run, &origins, &problems);
  for (size_t i = 0; i < overrides.size(); ++i) {
    config::RunConfig change;
    const int number = static_cast<int>(i) + 1;
    whole = config::ParseSource(overrides[i], number, &change, &origins, &problems) && whole;
    config::MergeFields(change, &run);
  }
  // What half a configuration lacks is no news.
  if (!whole) return problems.ToStatus();
  const std::vector<config::MergedPhase> phases = config::Complete(origins, known, &run, &problems);
  config::Validate(run, phases, origins, known, &problems);
  RETURN_IF_ERROR(problems.ToStatus());
  return LoadedConfig{config::ToSpec(run, phases), EffectiveText(run)};
}

StatusOr<LoadedConfig> LoadRunConfig(const std::string& path,
                                     const std::vector<std::string>& overrides,
                                     const KnownNames& known) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  return ParseRunConfig(text, path, overrides, known);
}

}  // namespace filigree

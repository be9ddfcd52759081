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

std::string EffectiveText(const RunConfig& config) {
  std::string text;
  google::protobuf::TextFormat::PrintToString(config, &text);
  return "# proto-file: configs/run.proto\n# proto-message: filigree.RunConfig\n" + text;
}

}  // namespace

StatusOr<LoadedConfig> ParseRunConfig(const std::string& text, const std::string& source,
                                      const std::vector<std::string>& overrides,
                                      const KnownNames& known) {
  std::vector<std::string> source_names = {source};
  for (size_t i = 1; i <= overrides.size(); ++i) {
    source_names.push_back("--override " + std::to_string(i));
  }
  Problems problems(source_names);
  Origins origins;
  RunConfig config;
  bool whole = ParseSource(text, 0, &config, &origins, &problems);
  for (size_t i = 0; i < overrides.size(); ++i) {
    RunConfig change;
    const int number = static_cast<int>(i) + 1;
    whole = ParseSource(overrides[i], number, &change, &origins, &problems) && whole;
    MergeFields(change, &config);
  }
  // What half a configuration lacks is no news.
  if (!whole) return problems.ToStatus();
  const std::vector<MergedPhase> phases = Complete(origins, &config, &problems);
  Validate(config, phases, origins, known, &problems);
  RETURN_IF_ERROR(problems.ToStatus());
  return LoadedConfig{ToSpec(config, phases), EffectiveText(config)};
}

StatusOr<LoadedConfig> LoadRunConfig(const std::string& path,
                                     const std::vector<std::string>& overrides,
                                     const KnownNames& known) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  return ParseRunConfig(text, path, overrides, known);
}

}  // namespace filigree

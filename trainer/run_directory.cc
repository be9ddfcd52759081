#include "trainer/run_directory.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "kernels/base/log.h"

namespace filigree {
namespace fs = std::filesystem;
namespace {

Status WriteText(const fs::path& path, const std::string& text) {
  std::ofstream file(path, std::ios::trunc);
  file << text;
  file.close();
  if (!file) return MachineError(path.string() + ": cannot be written");
  return OkStatus();
}

std::string ReadText(const fs::path& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// Moves a configuration that another start left to the first free config.<n>.textproto.
Status KeepEarlierConfig(const fs::path& path) {
  for (int n = 1;; ++n) {
    const fs::path kept = path.parent_path() / ("config." + std::to_string(n) + ".textproto");
    if (fs::exists(kept)) continue;
    std::error_code error;
    fs::rename(path, kept, error);
    if (error) return MachineError(kept.string() + ": " + error.message());
    return OkStatus();
  }
}

}  // namespace

Status CheckWritable(const std::string& run_dir) {
  fs::path place = fs::absolute(run_dir);
  std::error_code error;
  while (!fs::exists(place, error) && place.has_relative_path()) place = place.parent_path();
  if (!fs::is_directory(place, error)) {
    return InvalidInput(place.string() + ": is not a directory; choose another --out");
  }
  if (access(place.c_str(), W_OK | X_OK) != 0) {
    return InvalidInput(place.string() + ": no permission to write here; choose another --out");
  }
  return OkStatus();
}

Status OpenRunDirectory(const std::string& run_dir, const std::string& config_text) {
  const fs::path run = run_dir;
  std::error_code error;
  fs::create_directories(run / "checkpoints", error);
  if (error) {
    return InvalidInput(run_dir + ": cannot be created (" + error.message() +
                        "); choose another --out");
  }
  RETURN_IF_ERROR(SetLogFile((run / "log.txt").string()));
  const fs::path config = run / "config.textproto";
  if (fs::exists(config)) {
    if (ReadText(config) == config_text) return OkStatus();
    RETURN_IF_ERROR(KeepEarlierConfig(config));
  }
  return WriteText(config, config_text);
}

Status WriteLayers(const std::string& run_dir, const std::vector<Parameter>& parameters) {
  nlohmann::json layers = nlohmann::json::array();
  for (const Parameter& parameter : parameters) {
    if (!parameter.sparsifiable) continue;
    layers.push_back({{"name", parameter.name},
                      {"sparsity", parameter.layout.sparsity()},
                      {"stored", parameter.layout.nonzero_count()},
                      {"logical", parameter.logical_count()}});
  }
  return WriteText(fs::path(run_dir) / "layers.json", layers.dump(1) + "\n");
}

}  // namespace filigree

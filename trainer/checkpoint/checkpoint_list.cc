#include "trainer/checkpoint/checkpoint_list.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>

#include "trainer/checkpoint/checkpoint.h"
#include "trainer/checkpoint/durable_file.h"
#include "trainer/checkpoint/manifest.h"

namespace filigree {
namespace {

namespace fs = std::filesystem;

// The step of "step_00001000", or -1.
int64_t StepOfName(const std::string& name) {
  constexpr std::string_view kPrefix = "step_";
  if (!name.starts_with(kPrefix)) return -1;
  int64_t step = -1;
  const char* end = name.data() + name.size();
  const auto [last, error] = std::from_chars(name.data() + kPrefix.size(), end, step);
  return error == std::errc() && last == end ? step : -1;
}

std::string CheckpointRoot(const std::string& run_dir) { return run_dir + "/checkpoints"; }

// Directories that a writer or a removal left when it was killed.
void RemoveLeftovers(const std::string& root) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(root, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(".step_") && (name.ends_with(".partial") || name.ends_with(".removed"))) {
      fs::remove_all(entry.path(), error);
    }
  }
}

}  // namespace

std::map<int64_t, std::string> ListCheckpoints(const std::string& root) {
  std::map<int64_t, std::string> checkpoints;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(root, error)) {
    const int64_t step = StepOfName(entry.path().filename().string());
    // The manifest is written last, and the directory is renamed after it.
    if (step >= 0 && fs::exists(entry.path() / kCheckpointManifestName)) {
      checkpoints[step] = entry.path().string();
    }
  }
  return checkpoints;
}

std::string CheckpointDirectory(const std::string& run_dir, int64_t step) {
  char name[32];
  std::snprintf(name, sizeof(name), "/step_%08lld", static_cast<long long>(step));
  return CheckpointRoot(run_dir) + name;
}

std::string NewestCheckpoint(const std::string& run_dir) {
  const auto checkpoints = ListCheckpoints(CheckpointRoot(run_dir));
  return checkpoints.empty() ? "" : checkpoints.rbegin()->second;
}

StatusOr<std::string> ResolveCheckpoint(const std::string& path, const std::string& others) {
  if (IsCheckpoint(path)) return path;
  const std::string newest = NewestCheckpoint(path);
  if (!newest.empty()) return newest;
  std::error_code error;
  if (!fs::exists(path, error)) {
    return InvalidInput(path + ": does not exist; give a run or a checkpoint" + others);
  }
  if (fs::is_directory(CheckpointRoot(path), error)) {
    return InvalidInput(path + ": this run has no complete checkpoint yet; wait for its first one");
  }
  return InvalidInput(
      path + ": is neither a checkpoint (it has no " + kCheckpointManifestName +
      " with model.safetensors) nor a run directory (it has no checkpoints/); give one of them" +
      others);
}

Status RemoveOldCheckpoints(const std::string& run_dir, int64_t keep_last,
                            std::span<const int64_t> protected_steps) {
  const std::string root = CheckpointRoot(run_dir);
  RemoveLeftovers(root);
  if (keep_last <= 0) return OkStatus();
  const auto checkpoints = ListCheckpoints(root);
  int64_t surplus = static_cast<int64_t>(checkpoints.size()) - keep_last;
  for (const auto& [step, path] : checkpoints) {
    if (surplus-- <= 0) break;
    if (std::find(protected_steps.begin(), protected_steps.end(), step) != protected_steps.end()) {
      continue;
    }
    RETURN_IF_ERROR(RemoveDirectoryWhole(path));
  }
  return OkStatus();
}

}  // namespace filigree

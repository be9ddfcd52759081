#include "trainer/export/open_model.h"

#include <filesystem>

#include "trainer/checkpoint/manifest.h"
#include "trainer/export/huggingface_import.h"

namespace filigree {

bool IsHuggingFace(const std::string& path) {
  return !IsCheckpoint(path) && std::filesystem::is_regular_file(path + "/config.json");
}

StatusOr<std::unique_ptr<CheckpointReader>> OpenModel(const std::string& path) {
  if (IsHuggingFace(path)) return OpenHuggingFace(path);
  ASSIGN_OR_RETURN(const std::string checkpoint,
                   ResolveCheckpoint(path, ", or a Hugging Face directory (with config.json)"));
  return CheckpointReader::Open(checkpoint);
}

}  // namespace filigree

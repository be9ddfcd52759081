#include "trainer/tokenizer_match.h"

#include <filesystem>

#include "data/file_io.h"
#include "data/manifest.h"

namespace filigree {

Status CheckTokenizerOfData(const CheckpointReader& model, const std::string& data_dir) {
  namespace fs = std::filesystem;
  if (data_dir.empty() || model.tokenizer_dir().empty()) return OkStatus();
  if (!fs::is_regular_file(data_dir + "/" + kManifestName)) return OkStatus();
  ASSIGN_OR_RETURN(const Manifest manifest, ReadManifest(data_dir));
  const std::string own = model.tokenizer_dir() + "/" + manifest.tokenizer.file;
  if (!fs::is_regular_file(own)) return OkStatus();
  ASSIGN_OR_RETURN(const std::string text, ReadFile(own));
  if (HashHex(Hash64(text)) == manifest.tokenizer.hash) return OkStatus();
  return InvalidInput(data_dir + ": was prepared with another tokenizer than the model's (" + own +
                      "): its token ids mean other text; prepare the data with that file");
}

}  // namespace filigree

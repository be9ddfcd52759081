#include <filesystem>
#include <map>
#include <utility>

#include "data/file_io.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/checkpoint/checkpoint_list.h"
#include "trainer/checkpoint/manifest.h"
#include "trainer/checkpoint/pruning_tensors.h"
#include "trainer/checkpoint/safetensors.h"
#include "trainer/checkpoint/stored_values.h"

namespace filigree {
namespace {

namespace fs = std::filesystem;

// What to do about a damaged checkpoint.
std::string Mend(const std::string& directory) {
  fs::path path = fs::absolute(directory).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  std::string older;
  for (const auto& [step, other] : ListCheckpoints(path.parent_path().string())) {
    if (fs::path(other).filename() == path.filename()) break;
    older = other;
  }
  if (older.empty()) {
    return "; no older checkpoint lies beside it: restore the file from a copy";
  }
  return "; take an older checkpoint, " + older + ", or restore the file from a copy";
}

Status CheckFile(const CheckpointFile& expected, const std::string& path,
                 const std::string& directory) {
  auto file = MappedFile::Open(path);
  if (!file.ok()) {
    if (file.status().code() == StatusCode::kMachine) return file.status();
    return InvalidInput(file.status().message() + Mend(directory));
  }
  if (file->size() != expected.bytes) {
    return InvalidInput(path + ": is damaged: it has " + std::to_string(file->size()) +
                        " bytes, expected " + std::to_string(expected.bytes) + Mend(directory));
  }
  const std::string found = HashHex(Hash64(file->text()));
  if (found == expected.hash) return OkStatus();
  return InvalidInput(path + ": is damaged: its checksum is " + found + ", expected " +
                      expected.hash + Mend(directory));
}

StatusOr<SparseLayout> ReadLayout(const SafetensorsFile& file, const Parameter& parameter,
                                  const LayoutDescription& description) {
  const std::string place = file.path() + ": " + parameter.name;
  const int64_t out = parameter.shape.size() == 2 ? parameter.shape[0] : 1;
  const int64_t in = parameter.shape.empty() ? 1 : parameter.shape.back();
  if (description.kind == LayoutKind::kDense) return SparseLayout::Dense(out, in);
  const TensorEntry* offsets = file.Find(parameter.name + ".row_offsets");
  const TensorEntry* columns = file.Find(parameter.name + ".columns");
  if (offsets == nullptr || columns == nullptr) return InvalidInput(place + ": has no layout");
  ASSIGN_OR_RETURN(std::vector<int64_t> row_offsets, ReadElements<int64_t>(*offsets));
  ASSIGN_OR_RETURN(std::vector<int32_t> column_list, ReadElements<int32_t>(*columns));
  auto layout = [&] {
    switch (description.kind) {
      case LayoutKind::kUnstructured:
        return SparseLayout::Unstructured(out, in, std::move(row_offsets), std::move(column_list));
      case LayoutKind::kBlocked:
        return SparseLayout::Blocked(out, in, description.block_out, description.block_in,
                                     std::move(row_offsets), std::move(column_list));
      default:
        return SparseLayout::NM(out, in, description.n, description.m, std::move(column_list));
    }
  }();
  if (!layout.ok()) return InvalidInput(place + ": " + layout.status().message());
  if (HashHex(layout->fingerprint()) == description.fingerprint) return layout;
  return InvalidInput(place + ": the layout's fingerprint is " + HashHex(layout->fingerprint()) +
                      ", expected " + description.fingerprint);
}

class CheckpointDirectoryReader : public CheckpointReader {
 public:
  CheckpointDirectoryReader(std::string directory, CheckpointInfo info)
      : directory_(std::move(directory)), info_(std::move(info)) {}

  // Opens the verified files and builds the layouts.
  Status Load(const CheckpointManifest& manifest) {
    RETURN_IF_ERROR(OpenTensors("model.safetensors"));
    RETURN_IF_ERROR(OpenTensors("layouts.safetensors"));
    if (info_.has_moments) RETURN_IF_ERROR(OpenTensors("optimizer.safetensors"));
    for (size_t i = 0; i < info_.parameters.size(); ++i) {
      Parameter& parameter = info_.parameters[i];
      const SafetensorsFile& file = files_.at("layouts.safetensors");
      ASSIGN_OR_RETURN(parameter.layout, ReadLayout(file, parameter, manifest.layouts[i]));
    }
    for (const CheckpointFile& file : manifest.files) {
      if (file.name == "config.textproto") {
        ASSIGN_OR_RETURN(info_.config_text, ReadFile(directory_ + "/" + file.name));
      }
      if (file.name == kPruningFile) {
        RETURN_IF_ERROR(OpenTensors(kPruningFile));
        ASSIGN_OR_RETURN(info_.pruning, ReadPruning(files_.at(kPruningFile)));
      }
      if (file.name.starts_with("tokenizer/")) tokenizer_dir_ = directory_ + "/tokenizer";
    }
    return OkStatus();
  }

  const std::string& directory() const override { return directory_; }
  const CheckpointInfo& info() const override { return info_; }
  std::string tokenizer_dir() const override { return tokenizer_dir_; }

  StatusOr<std::vector<float>> ReadSegment(int parameter, CheckpointArray array) const override {
    ASSIGN_OR_RETURN(const std::vector<float> nonzeros, ReadNonzeros(parameter, array));
    return SegmentOfNonzeros(info_.parameters[static_cast<size_t>(parameter)], nonzeros);
  }

  StatusOr<std::vector<float>> ReadDense(int parameter) const override {
    ASSIGN_OR_RETURN(const std::vector<float> nonzeros,
                     ReadNonzeros(parameter, CheckpointArray::kMaster));
    return DenseOfNonzeros(info_.parameters[static_cast<size_t>(parameter)].layout, nonzeros);
  }

 private:
  Status OpenTensors(const std::string& name) {
    ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(directory_ + "/" + name));
    files_.emplace(name, std::move(file));
    return OkStatus();
  }

  StatusOr<std::vector<float>> ReadNonzeros(int index, CheckpointArray array) const {
    CHECK(array == CheckpointArray::kMaster || info_.has_moments)
        << directory_ << " holds no moments";
    CHECK(array != CheckpointArray::kBorn || info_.has_born) << directory_ << " holds no ages";
    static constexpr const char* kSuffixes[] = {"", ".m", ".v", ".born"};
    const Parameter& parameter = info_.parameters[static_cast<size_t>(index)];
    const bool master = array == CheckpointArray::kMaster;
    const SafetensorsFile& file = files_.at(master ? "model.safetensors" : "optimizer.safetensors");
    const std::string name = parameter.name + kSuffixes[static_cast<int>(array)];
    const TensorEntry* tensor = file.Find(name);
    if (tensor == nullptr || tensor->count() != parameter.layout.nonzero_count()) {
      return InvalidInput(file.path() + ": tensor \"" + name + "\" " +
                          (tensor == nullptr ? "is missing" : "has another size") + ", expected " +
                          std::to_string(parameter.layout.nonzero_count()) + " values");
    }
    return ReadElements<float>(*tensor);
  }

  std::string directory_;
  CheckpointInfo info_;
  std::map<std::string, SafetensorsFile> files_;
  std::string tokenizer_dir_;
};

}  // namespace

StatusOr<std::unique_ptr<CheckpointReader>> CheckpointReader::Open(const std::string& directory) {
  const std::string path = directory + "/" + kCheckpointManifestName;
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  auto manifest = ParseManifest(text, path);
  if (!manifest.ok()) return InvalidInput(manifest.status().message() + Mend(directory));
  for (const CheckpointFile& file : manifest->files) {
    RETURN_IF_ERROR(CheckFile(file, directory + "/" + file.name, directory));
  }
  auto reader = std::make_unique<CheckpointDirectoryReader>(directory, manifest->info);
  RETURN_IF_ERROR(reader->Load(*manifest));
  return std::unique_ptr<CheckpointReader>(std::move(reader));
}

}  // namespace filigree

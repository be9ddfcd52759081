#include <filesystem>
#include <utility>

#include "data/file_io.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/checkpoint/manifest.h"
#include "trainer/checkpoint/pruning_tensors.h"
#include "trainer/checkpoint/safetensors.h"
#include "trainer/checkpoint/stored_values.h"
#include "trainer/checkpoint/tokenizer_files.h"

namespace filigree {
namespace {

namespace fs = std::filesystem;

// The tensor that holds a parameter's nonzeros.
TensorSpec ValuesSpec(const Parameter& parameter, const char* suffix) {
  TensorSpec spec{.name = parameter.name + suffix, .dtype = DType::kF32, .shape = parameter.shape};
  if (parameter.layout.kind() != LayoutKind::kDense) {
    spec.shape = {parameter.layout.nonzero_count()};
  }
  return spec;
}

class StagedCheckpointWriter : public CheckpointWriter {
 public:
  StagedCheckpointWriter(StagedDirectory staged, CheckpointInfo info)
      : staged_(std::move(staged)), info_(std::move(info)) {}

  Status Start(const std::string& tokenizer_dir) {
    if (!info_.config_text.empty()) {
      RETURN_IF_ERROR(WriteFile("config.textproto", info_.config_text));
    }
    if (!tokenizer_dir.empty()) RETURN_IF_ERROR(CopyTokenizer(tokenizer_dir));
    RETURN_IF_ERROR(WriteLayouts());
    if (info_.pruning) RETURN_IF_ERROR(WritePruning(*info_.pruning));
    std::vector<TensorSpec> values, moments;
    for (const Parameter& parameter : info_.parameters) {
      values.push_back(ValuesSpec(parameter, ""));
      moments.push_back(ValuesSpec(parameter, ".m"));
      moments.push_back(ValuesSpec(parameter, ".v"));
      if (info_.has_born) moments.push_back(ValuesSpec(parameter, ".born"));
    }
    RETURN_IF_ERROR(CreateTensors("model.safetensors", std::move(values), &values_));
    if (!info_.has_moments) return OkStatus();
    return CreateTensors("optimizer.safetensors", std::move(moments), &moments_);
  }

  Status Add(int parameter, CheckpointArray array, std::span<const float> segment) override {
    const Parameter& added = info_.parameters[static_cast<size_t>(parameter)];
    CHECK_EQ(parameter, next_parameter_) << added.name << " is out of order";
    CHECK_EQ(static_cast<int>(array), static_cast<int>(next_array_)) << added.name;
    CHECK_EQ(static_cast<int64_t>(segment.size()), added.segment_count()) << added.name;
    Advance();
    SafetensorsWriter& file = array == CheckpointArray::kMaster ? *values_ : *moments_;
    const std::vector<float> nonzeros = NonzerosOfSegment(added.layout, segment);
    return file.Append(nonzeros.data(), static_cast<int64_t>(nonzeros.size() * sizeof(float)));
  }

  Status Commit() override {
    CHECK_EQ(next_parameter_, static_cast<int>(info_.parameters.size()))
        << staged_.final_path() << " lacks parameters";
    RETURN_IF_ERROR(CloseTensors("model.safetensors", &*values_));
    if (moments_) RETURN_IF_ERROR(CloseTensors("optimizer.safetensors", &*moments_));
    const std::string manifest = FormatManifest(info_, files_);
    RETURN_IF_ERROR(WriteFile(kCheckpointManifestName, manifest));
    return staged_.Commit();
  }

 private:
  void Advance() {
    const CheckpointArray last = !info_.has_moments ? CheckpointArray::kMaster
                                 : info_.has_born   ? CheckpointArray::kBorn
                                                    : CheckpointArray::kV;
    if (next_array_ != last) {
      next_array_ = static_cast<CheckpointArray>(static_cast<int>(next_array_) + 1);
    } else {
      next_array_ = CheckpointArray::kMaster;
      ++next_parameter_;
    }
  }

  std::string PathOf(const std::string& name) const { return staged_.path() + "/" + name; }

  Status WriteFile(const std::string& name, std::string_view bytes) {
    ASSIGN_OR_RETURN(DurableFile file, DurableFile::Create(PathOf(name)));
    RETURN_IF_ERROR(file.Append(bytes));
    RETURN_IF_ERROR(file.Close());
    files_.push_back({.name = name, .bytes = file.size(), .hash = HashHex(file.hash())});
    return OkStatus();
  }

  Status CopyTokenizer(const std::string& tokenizer_dir) {
    const std::vector<std::string> names = TokenizerFiles(tokenizer_dir);
    if (names.empty()) {
      return InvalidInput(tokenizer_dir + ": has no tokenizer.model and no tokenizer.json");
    }
    std::error_code error;
    if (!fs::create_directory(PathOf("tokenizer"), error)) {
      return MachineError(PathOf("tokenizer") + ": cannot be created: " + error.message());
    }
    for (const std::string& name : names) {
      ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(tokenizer_dir + "/" + name));
      RETURN_IF_ERROR(WriteFile("tokenizer/" + name, file.text()));
    }
    return SyncDirectory(PathOf("tokenizer"));
  }

  // All row offsets, then all columns: each tensor is then aligned to its elements.
  Status WriteLayouts() {
    std::vector<TensorSpec> offsets, columns;
    std::vector<const SparseLayout*> layouts;
    for (const Parameter& parameter : info_.parameters) {
      const SparseLayout& layout = parameter.layout;
      if (layout.kind() == LayoutKind::kDense) continue;
      layouts.push_back(&layout);
      offsets.push_back({parameter.name + ".row_offsets",
                         DType::kI64,
                         {static_cast<int64_t>(layout.row_offsets().size())}});
      columns.push_back({parameter.name + ".columns",
                         DType::kI32,
                         {static_cast<int64_t>(layout.columns().size())}});
    }
    offsets.insert(offsets.end(), columns.begin(), columns.end());
    std::optional<SafetensorsWriter> file;
    RETURN_IF_ERROR(CreateTensors("layouts.safetensors", std::move(offsets), &file));
    for (const SparseLayout* layout : layouts) {
      const std::span bytes = std::as_bytes(layout->row_offsets());
      RETURN_IF_ERROR(file->Append(bytes.data(), static_cast<int64_t>(bytes.size())));
    }
    for (const SparseLayout* layout : layouts) {
      const std::span bytes = std::as_bytes(layout->columns());
      RETURN_IF_ERROR(file->Append(bytes.data(), static_cast<int64_t>(bytes.size())));
    }
    return CloseTensors("layouts.safetensors", &*file);
  }

  Status WritePruning(const PruningProgress& progress) {
    const PruningTensors tensors(progress);
    std::optional<SafetensorsWriter> file;
    RETURN_IF_ERROR(CreateTensors(kPruningFile, tensors.specs(), &file));
    for (const std::span<const std::byte> bytes : tensors.bytes()) {
      RETURN_IF_ERROR(file->Append(bytes.data(), static_cast<int64_t>(bytes.size())));
    }
    return CloseTensors(kPruningFile, &*file);
  }

  Status CreateTensors(const std::string& name, std::vector<TensorSpec> tensors,
                       std::optional<SafetensorsWriter>* file) {
    ASSIGN_OR_RETURN(SafetensorsWriter created,
                     SafetensorsWriter::Create(PathOf(name), std::move(tensors),
                                               {{"step", std::to_string(info_.step)}}));
    *file = std::move(created);
    return OkStatus();
  }

  Status CloseTensors(const std::string& name, SafetensorsWriter* file) {
    RETURN_IF_ERROR(file->Close());
    files_.push_back({.name = name, .bytes = file->size(), .hash = HashHex(file->hash())});
    return OkStatus();
  }

  StagedDirectory staged_;
  CheckpointInfo info_;
  std::vector<CheckpointFile> files_;
  std::optional<SafetensorsWriter> values_, moments_;
  int next_parameter_ = 0;
  CheckpointArray next_array_ = CheckpointArray::kMaster;
};

}  // namespace

StatusOr<std::unique_ptr<CheckpointWriter>> CheckpointWriter::Begin(
    const std::string& directory, CheckpointInfo info, const std::string& tokenizer_dir) {
  std::error_code error;
  const bool taken = fs::exists(directory, error) && !fs::is_empty(directory, error);
  if (taken && !IsCheckpoint(directory)) {
    return InvalidInput(directory + ": exists and is no checkpoint; choose another place, or " +
                        "remove it yourself");
  }
  ASSIGN_OR_RETURN(StagedDirectory staged, StagedDirectory::Begin(directory));
  auto writer = std::make_unique<StagedCheckpointWriter>(std::move(staged), std::move(info));
  RETURN_IF_ERROR(writer->Start(tokenizer_dir));
  return std::unique_ptr<CheckpointWriter>(std::move(writer));
}

}  // namespace filigree

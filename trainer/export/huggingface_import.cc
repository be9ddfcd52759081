#include "trainer/export/huggingface_import.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <utility>

#include "data/file_io.h"
#include "trainer/checkpoint/safetensors.h"
#include "trainer/checkpoint/stored_values.h"
#include "trainer/checkpoint/tokenizer_files.h"
#include "trainer/export/huggingface_config.h"
#include "trainer/export/huggingface_names.h"
#include "trainer/export/sltrain_checkpoint.h"

namespace filigree {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kGpt2Prefix = "transformer.";

// Buffers that old checkpoints carry beside the parameters.
bool IsBuffer(std::string_view name) {
  return name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") ||
         name.ends_with(".rotary_emb.inv_freq");
}

class HuggingFaceReader : public CheckpointReader {
 public:
  HuggingFaceReader(std::string directory, const ModelSpec& model, SafetensorsSet set)
      : directory_(std::move(directory)), set_(std::move(set)), tensors_(HfTensorsOf(model)) {
    info_.has_moments = false;
    info_.model = model;
    info_.parameters = DenseParametersOf(model);
    if (!TokenizerFiles(directory_).empty()) tokenizer_dir_ = directory_;
  }

  // Finds every tensor of the table, and accounts for every tensor of the files.
  Status MatchTensors() {
    for (size_t t = 0; t < tensors_.size(); ++t) {
      ASSIGN_OR_RETURN(const TensorEntry* entry, FindEntry(tensors_[t]));
      entries_.push_back(entry);
      for (size_t p = 0; p < tensors_[t].parts.size(); ++p) {
        places_[tensors_[t].parts[p].parameter] = {t, static_cast<int>(p)};
      }
    }
    const std::set<const TensorEntry*> used(entries_.begin(), entries_.end());
    for (const SafetensorsFile& file : set_.files()) {
      for (const TensorEntry& entry : file.tensors()) {
        const bool tied_copy = info_.model.tied_head && entry.name == "lm_head.weight";
        if (used.count(&entry) > 0 || IsBuffer(entry.name) || tied_copy) continue;
        return InvalidInput(file.path() + ": tensor \"" + entry.name +
                            "\" has no place in a model of this family");
      }
    }
    return OkStatus();
  }

  const std::string& directory() const override { return directory_; }
  const CheckpointInfo& info() const override { return info_; }
  std::string tokenizer_dir() const override { return tokenizer_dir_; }

  StatusOr<std::vector<float>> ReadSegment(int parameter, CheckpointArray array) const override {
    CHECK(array == CheckpointArray::kMaster) << directory_ << " holds no moments";
    ASSIGN_OR_RETURN(const std::vector<float> values, ReadDense(parameter));
    return SegmentOfNonzeros(info_.parameters[static_cast<size_t>(parameter)], values);
  }

  StatusOr<std::vector<float>> ReadDense(int parameter) const override {
    const Place place = places_.at(info_.parameters[static_cast<size_t>(parameter)].name);
    ASSIGN_OR_RETURN(std::vector<float> stacked, ReadFloats(*entries_[place.tensor]));
    return TakePart(tensors_[place.tensor], place.part, std::move(stacked));
  }

 private:
  struct Place {
    size_t tensor = 0;
    int part = 0;
  };

  StatusOr<const TensorEntry*> FindEntry(const HfTensor& tensor) const {
    const TensorEntry* entry = set_.Find(tensor.name);
    if (entry == nullptr && tensor.name.starts_with(kGpt2Prefix)) {
      entry = set_.Find(tensor.name.substr(kGpt2Prefix.size()));
    }
    if (entry == nullptr) {
      return InvalidInput(directory_ + ": tensor \"" + tensor.name + "\" is missing");
    }
    if (entry->shape == tensor.FileShape()) return entry;
    return InvalidInput(entry->file + ": tensor \"" + entry->name + "\" has shape " +
                        ShapeText(entry->shape) + ", but config.json asks for " +
                        ShapeText(tensor.FileShape()));
  }

  std::string directory_;
  SafetensorsSet set_;
  std::vector<HfTensor> tensors_;
  CheckpointInfo info_;
  std::string tokenizer_dir_;
  std::vector<const TensorEntry*> entries_;  // of tensors_
  std::map<std::string, Place> places_;      // of our parameters
};

// Committing a checkpoint takes the place of what has its name: nobody's files are lost to an
// import.
Status CheckUnused(const std::string& checkpoint_dir) {
  std::error_code error;
  if (!fs::exists(checkpoint_dir, error) || fs::is_empty(checkpoint_dir, error)) return OkStatus();
  return InvalidInput(checkpoint_dir +
                      ": is there already; choose another --out, or remove it yourself");
}

}  // namespace

StatusOr<std::unique_ptr<CheckpointReader>> OpenHuggingFace(const std::string& hf_dir) {
  if (IsSltrain(hf_dir)) return OpenSltrain(hf_dir);
  const std::string config_path = hf_dir + "/config.json";
  ASSIGN_OR_RETURN(const std::string text, ReadFile(config_path));
  ASSIGN_OR_RETURN(const ModelSpec model, ParseHfConfig(text, config_path));
  ASSIGN_OR_RETURN(SafetensorsSet set, SafetensorsSet::Open(hf_dir));
  auto reader = std::make_unique<HuggingFaceReader>(hf_dir, model, std::move(set));
  RETURN_IF_ERROR(reader->MatchTensors());
  return std::unique_ptr<CheckpointReader>(std::move(reader));
}

Status ImportHuggingFace(const std::string& hf_dir, const std::string& checkpoint_dir) {
  ASSIGN_OR_RETURN(const auto reader, OpenHuggingFace(hf_dir));
  RETURN_IF_ERROR(CheckUnused(checkpoint_dir));
  ASSIGN_OR_RETURN(const auto writer, CheckpointWriter::Begin(checkpoint_dir, reader->info(),
                                                              reader->tokenizer_dir()));
  for (size_t i = 0; i < reader->info().parameters.size(); ++i) {
    const int parameter = static_cast<int>(i);
    ASSIGN_OR_RETURN(const std::vector<float> segment,
                     reader->ReadSegment(parameter, CheckpointArray::kMaster));
    RETURN_IF_ERROR(writer->Add(parameter, CheckpointArray::kMaster, segment));
  }
  return writer->Commit();
}

}  // namespace filigree

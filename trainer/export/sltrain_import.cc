#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
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

constexpr std::string_view kWeightSuffix = ".weight";

// alpha of splora_config.json.
StatusOr<double> ReadAlpha(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  try {
    const auto json = nlohmann::json::parse(text);
    if (json.value("trainable_scaling", false)) {
      return InvalidInput(path + ": trainable_scaling is on, which has no counterpart here");
    }
    return json.at("lora_alpha").get<double>();
  } catch (const nlohmann::json::exception& error) {
    return InvalidInput(path + ": is no valid SLTrain config: " + error.what());
  }
}

class SltrainReader : public CheckpointReader {
 public:
  SltrainReader(std::string directory, const ModelSpec& model, double alpha, SafetensorsSet set)
      : directory_(std::move(directory)), alpha_(alpha), set_(std::move(set)) {
    info_.has_moments = false;
    info_.model = model;
    if (!TokenizerFiles(directory_).empty()) tokenizer_dir_ = directory_;
  }

  // Finds the tensors of every parameter of the dense model, or those that stand for it.
  Status Match() {
    std::map<std::string, std::string> hf_names;
    for (const HfTensor& tensor : HfTensorsOf(info_.model)) {
      hf_names[tensor.parts[0].parameter] = tensor.name;
    }
    for (Parameter& parameter : DenseParametersOf(info_.model)) {
      const std::string& name = hf_names.at(parameter.name);
      if (set_.Find(name) != nullptr) {
        const std::vector<int64_t> shape = parameter.shape;
        RETURN_IF_ERROR(Append(std::move(parameter), name, shape));
      } else {
        RETURN_IF_ERROR(AppendWrapped(std::move(parameter), name));
      }
    }
    return OkStatus();
  }

  const std::string& directory() const override { return directory_; }
  const CheckpointInfo& info() const override { return info_; }
  std::string tokenizer_dir() const override { return tokenizer_dir_; }

  StatusOr<std::vector<float>> ReadSegment(int parameter, CheckpointArray array) const override {
    CHECK(array == CheckpointArray::kMaster) << directory_ << " holds no moments";
    ASSIGN_OR_RETURN(const std::vector<float> values, ReadFloats(*entries_[parameter]));
    return SegmentOfNonzeros(info_.parameters[parameter], values);
  }
  StatusOr<std::vector<float>> ReadDense(int parameter) const override {
    ASSIGN_OR_RETURN(const std::vector<float> values, ReadFloats(*entries_[parameter]));
    return DenseOfNonzeros(info_.parameters[parameter].layout, values);
  }

 private:
  Status Append(Parameter parameter, const std::string& name, const std::vector<int64_t>& shape) {
    const TensorEntry* entry = set_.Find(name);
    if (entry == nullptr) {
      return InvalidInput(directory_ + ": tensor \"" + name + "\" is missing");
    }
    if (entry->shape != shape) {
      return InvalidInput(entry->file + ": tensor \"" + name + "\" has shape " +
                          ShapeText(entry->shape) + " instead of " + ShapeText(shape));
    }
    info_.parameters.push_back(std::move(parameter));
    entries_.push_back(entry);
    return OkStatus();
  }

  Status AppendWrapped(Parameter weight, const std::string& hf_weight) {
    const std::string prefix = hf_weight.substr(0, hf_weight.size() - kWeightSuffix.size());
    const std::string linear = weight.name.substr(0, weight.name.size() - kWeightSuffix.size());
    const int64_t out = weight.shape[0], in = weight.shape[1];
    const TensorEntry* a = set_.Find(prefix + ".lora_A");
    if (a == nullptr || a->shape.size() != 2) {
      return InvalidInput(directory_ + ": holds neither \"" + hf_weight + "\" nor a matrix \"" +
                          prefix + ".lora_A\"");
    }
    const int64_t rank = a->shape[0];
    ASSIGN_OR_RETURN(weight.layout, ReadLayout(prefix + ".sparse_index", out, in));
    const auto factor = [&](const char* suffix, int64_t rows, int64_t cols) {
      Parameter parameter = weight;
      parameter.name = linear + suffix;
      parameter.shape = {rows, cols};
      parameter.layout = SparseLayout::Dense(rows, cols);
      parameter.sparsifiable = false;
      parameter.factor = FactorKind::kLowRank;
      parameter.factor_scale = alpha_ / static_cast<double>(rank);
      return parameter;
    };
    Parameter factor_a = factor(".low_rank_a", rank, in);
    Parameter factor_b = factor(".low_rank_b", out, rank);
    const int64_t stored = weight.layout.stored_count();
    RETURN_IF_ERROR(Append(std::move(weight), prefix + ".sparse_value", {stored}));
    RETURN_IF_ERROR(Append(std::move(factor_a), prefix + ".lora_A", {rank, in}));
    return Append(std::move(factor_b), prefix + ".lora_B", {out, rank});
  }

  StatusOr<SparseLayout> ReadLayout(const std::string& name, int64_t out, int64_t in) const {
    const TensorEntry* entry = set_.Find(name);
    if (entry == nullptr) {
      return InvalidInput(directory_ + ": tensor \"" + name + "\" is missing");
    }
    ASSIGN_OR_RETURN(const std::vector<int64_t> indices, ReadElements<int64_t>(*entry));
    std::vector<int64_t> row_offsets(out + 1, 0);
    std::vector<int32_t> columns;
    int64_t previous = -1;
    for (int64_t index : indices) {
      if (index <= previous || index >= out * in) {
        return InvalidInput(entry->file + ": tensor \"" + name + "\" holds " +
                            std::to_string(index) + " after " + std::to_string(previous) +
                            "; indices must ascend and lie below " + std::to_string(out * in));
      }
      previous = index;
      ++row_offsets[index / in + 1];
      columns.push_back(static_cast<int32_t>(index % in));
    }
    for (int64_t row = 0; row < out; ++row) row_offsets[row + 1] += row_offsets[row];
    return SparseLayout::Unstructured(out, in, std::move(row_offsets), std::move(columns));
  }

  std::string directory_;
  double alpha_;
  SafetensorsSet set_;
  CheckpointInfo info_;
  std::string tokenizer_dir_;
  std::vector<const TensorEntry*> entries_;  // of info_.parameters
};

}  // namespace

bool IsSltrain(const std::string& directory) {
  return std::filesystem::is_regular_file(directory + "/splora_config.json") &&
         std::filesystem::is_regular_file(directory + "/config.json");
}

StatusOr<std::unique_ptr<CheckpointReader>> OpenSltrain(const std::string& directory) {
  const std::string config_path = directory + "/config.json";
  ASSIGN_OR_RETURN(const std::string text, ReadFile(config_path));
  ASSIGN_OR_RETURN(const ModelSpec model, ParseHfConfig(text, config_path));
  if (model.family != ModelFamily::kLlama) {
    return InvalidInput(config_path + ": SLTrain's checkpoints are llamas");
  }
  ASSIGN_OR_RETURN(const double alpha, ReadAlpha(directory + "/splora_config.json"));
  ASSIGN_OR_RETURN(SafetensorsSet set, SafetensorsSet::Open(directory));
  auto reader = std::make_unique<SltrainReader>(directory, model, alpha, std::move(set));
  RETURN_IF_ERROR(reader->Match());
  return std::unique_ptr<CheckpointReader>(std::move(reader));
}

}  // namespace filigree

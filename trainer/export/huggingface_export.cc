#include "trainer/export/huggingface_export.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "data/file_io.h"
#include "trainer/checkpoint/durable_file.h"
#include "trainer/checkpoint/merged_weight.h"
#include "trainer/checkpoint/safetensors.h"
#include "trainer/checkpoint/stored_values.h"
#include "trainer/export/huggingface_config.h"
#include "trainer/export/huggingface_names.h"
#include "trainer/export/huggingface_tokenizer.h"

namespace filigree {
namespace {

namespace fs = std::filesystem;

constexpr const char* kLayoutsName = "filigree_layouts.safetensors";
constexpr const char* kProducerKey = "producer";
constexpr const char* kProducer = "filigree";

bool IsModelFile(const std::string& name) {
  return name == "model.safetensors" ||
         (name.starts_with("model-") && name.ends_with(".safetensors"));
}

// Whether this entry of a directory is one that an export of ours wrote.
bool IsOurs(const fs::path& path) {
  static const std::set<std::string> kOther = {"config.json",
                                               "generation_config.json",
                                               kSafetensorsIndexName,
                                               "tokenizer.model",
                                               "tokenizer.json",
                                               "tokenizer_config.json",
                                               "vocab.json",
                                               "merges.txt",
                                               "special_tokens_map.json",
                                               "added_tokens.json",
                                               "chat_template.jinja"};
  const std::string name = path.filename().string();
  if (kOther.count(name) > 0) return true;
  if (name != kLayoutsName && !IsModelFile(name)) return false;
  const auto file = SafetensorsFile::Open(path.string());
  return file.ok() && file->metadata().count(kProducerKey) > 0 &&
         file->metadata().at(kProducerKey) == kProducer;
}

// Nobody's files are lost: only an empty place or an earlier export may be replaced.
Status CheckReplaceable(const std::string& out_dir) {
  std::error_code error;
  if (!fs::exists(out_dir, error)) return OkStatus();
  if (!fs::is_directory(out_dir, error)) {
    return InvalidInput(out_dir + ": is not a directory; choose another --out");
  }
  for (const auto& entry : fs::directory_iterator(out_dir)) {
    if (IsOurs(entry.path()) && fs::exists(fs::path(out_dir) / kLayoutsName)) continue;
    return InvalidInput(out_dir + ": holds \"" + entry.path().filename().string() +
                        "\", which no export of Filigree wrote; choose an empty --out, or remove "
                        "it yourself");
  }
  return OkStatus();
}

class Exporter {
 public:
  Exporter(const CheckpointReader& reader, const ExportOptions& options, std::string out_dir)
      : reader_(reader), options_(options), out_dir_(std::move(out_dir)) {
    const CheckpointInfo& info = reader.info();
    tensors_ = HfTensorsOf(info.model);
    for (const HfTensor& tensor : tensors_) {
      for (const HfTensor::Part& part : tensor.parts) {
        parts_of_[part.parameter] = FindWeightParts(info.parameters, part.parameter);
      }
    }
    metadata_ = {{kProducerKey, kProducer},
                 {"step", std::to_string(info.step)},
                 {"config_xxh64", HashHex(Hash64(info.config_text))}};
  }

  // The checkpoint's parameters must be those that the table names, in its shapes, or factors that
  // can be merged to them.
  Status CheckParameters() const {
    const std::string place = reader_.directory() + ": parameter \"";
    std::set<int> exported;
    for (const HfTensor& tensor : tensors_) {
      for (const HfTensor::Part& part : tensor.parts) {
        const WeightParts& parts = parts_of_.at(part.parameter);
        if (!HasShape(parts, part.shape)) {
          return InvalidInput(place + part.parameter + "\" is missing or of another shape than " +
                              "the model in the manifest implies; it cannot be exported");
        }
        exported.insert({parts.weight, parts.low_rank_a, parts.low_rank_b});
      }
    }
    for (size_t i = 0; i < parameters().size(); ++i) {
      if (parameters()[i].factor == FactorKind::kNonlinear) {
        return InvalidInput(place + parameters()[i].name +
                            "\" is a factor before or after a nonlinearity (cola), which no " +
                            "Hugging Face model of this family has; it cannot be exported");
      }
      if (exported.count(static_cast<int>(i)) > 0) continue;
      return InvalidInput(place + parameters()[i].name +
                          "\" has no place in a Hugging Face model of this family");
    }
    return OkStatus();
  }

  Status WriteModel() const {
    const std::vector<std::vector<const HfTensor*>> shards = PlanShards();
    std::vector<std::pair<std::string, std::vector<TensorSpec>>> index;
    for (size_t i = 0; i < shards.size(); ++i) {
      char name[64] = "model.safetensors";
      if (shards.size() > 1) {
        std::snprintf(name, sizeof(name), "model-%05zu-of-%05zu.safetensors", i + 1, shards.size());
      }
      std::vector<TensorSpec> specs;
      for (const HfTensor* tensor : shards[i]) specs.push_back(SpecOf(*tensor));
      ASSIGN_OR_RETURN(SafetensorsWriter file,
                       SafetensorsWriter::Create(out_dir_ + "/" + name, specs, metadata_));
      for (const HfTensor* tensor : shards[i]) RETURN_IF_ERROR(WriteTensor(*tensor, &file));
      RETURN_IF_ERROR(file.Close());
      index.emplace_back(name, std::move(specs));
    }
    return WriteText(kSafetensorsIndexName, SafetensorsIndex(index));
  }

  Status WriteLayouts() const {
    std::vector<TensorSpec> specs;
    std::vector<const HfTensor*> sparse;
    SafetensorsMetadata metadata = metadata_;
    for (const HfTensor& tensor : tensors_) {
      const bool dense = std::all_of(tensor.parts.begin(), tensor.parts.end(), [&](auto& part) {
        return LayoutOf(part).kind() == LayoutKind::kDense;
      });
      if (dense) continue;
      const int64_t cells = tensor.out() * tensor.in();
      specs.push_back({tensor.name + ".mask", DType::kU8, {(cells + 7) / 8}});
      metadata[tensor.name + ".layout"] = LayoutText(tensor);
      sparse.push_back(&tensor);
    }
    ASSIGN_OR_RETURN(SafetensorsWriter file,
                     SafetensorsWriter::Create(out_dir_ + "/" + kLayoutsName, specs, metadata));
    for (const HfTensor* tensor : sparse) {
      const std::vector<uint8_t> bits = MaskBits(*tensor);
      RETURN_IF_ERROR(file.Append(bits.data(), static_cast<int64_t>(bits.size())));
    }
    return file.Close();
  }

  Status WriteConfigs() const {
    const ModelSpec& model = reader_.info().model;
    ASSIGN_OR_RETURN(const SpecialTokens tokens,
                     ExportTokenizer(reader_.tokenizer_dir(), out_dir_, model.max_positions));
    RETURN_IF_ERROR(WriteText("config.json", HfConfigText(model, options_.dtype, tokens)));
    return WriteText("generation_config.json", HfGenerationConfigText(tokens));
  }

 private:
  const std::vector<Parameter>& parameters() const { return reader_.info().parameters; }

  bool HasShape(const WeightParts& parts, const std::vector<int64_t>& shape) const {
    if (parts.empty()) return false;
    if (parts.weight >= 0 && parameters()[parts.weight].shape != shape) return false;
    if (!parts.has_factors()) return true;
    const std::vector<int64_t>& a = parameters()[parts.low_rank_a].shape;
    const std::vector<int64_t>& b = parameters()[parts.low_rank_b].shape;
    return std::vector<int64_t>{b[0], a[1]} == shape && a[0] == b[1];
  }

  // Of the cells that are stored one by one; dense where only factors are.
  SparseLayout LayoutOf(const HfTensor::Part& part) const {
    const int weight = parts_of_.at(part.parameter).weight;
    return weight >= 0 ? parameters()[weight].layout : SparseLayout::Dense(part.out(), part.in());
  }

  TensorSpec SpecOf(const HfTensor& tensor) const {
    return {tensor.name, options_.dtype, tensor.FileShape()};
  }

  // Tensors in order, as many in a file as fit.
  std::vector<std::vector<const HfTensor*>> PlanShards() const {
    std::vector<std::vector<const HfTensor*>> shards(1);
    int64_t bytes = 0;
    for (const HfTensor& tensor : tensors_) {
      const int64_t added = SpecOf(tensor).bytes();
      if (bytes > 0 && bytes + added > options_.max_shard_bytes) {
        shards.emplace_back();
        bytes = 0;
      }
      shards.back().push_back(&tensor);
      bytes += added;
    }
    return shards;
  }

  Status WriteTensor(const HfTensor& tensor, SafetensorsWriter* file) const {
    std::vector<std::vector<float>> parts;
    for (const HfTensor::Part& part : tensor.parts) {
      ASSIGN_OR_RETURN(std::vector<float> values,
                       MergedWeight(parameters(), parts_of_.at(part.parameter), [&](int index) {
                         return reader_.ReadSegment(index, CheckpointArray::kMaster);
                       }));
      const double factor = GainFactor(part.parameter);
      for (float& value : values) value = static_cast<float>(value * factor);
      parts.push_back(std::move(values));
    }
    const std::vector<float> values = StackParts(tensor, std::move(parts));
    if (options_.dtype == DType::kF32) {
      return file->Append(values.data(), static_cast<int64_t>(values.size() * sizeof(float)));
    }
    const std::vector<BFloat16> rounded(values.begin(), values.end());
    return file->Append(rounded.data(), static_cast<int64_t>(rounded.size() * sizeof(BFloat16)));
  }

  // A norm that divides by D channels of which D' are left is, over these, an ordinary one:
  // rsqrt(sum / D + e) = sqrt(D / D') rsqrt(sum / D' + e D / D'). The first factor goes into the
  // gain, the second into the config's epsilon.
  double GainFactor(const std::string& parameter) const {
    const ModelSpec& model = reader_.info().model;
    if (!parameter.ends_with("norm.weight") || model.norm_divisor() == model.width) return 1;
    return std::sqrt(static_cast<double>(model.norm_divisor()) / static_cast<double>(model.width));
  }

  std::vector<uint8_t> MaskBits(const HfTensor& tensor) const {
    std::vector<std::vector<uint8_t>> parts;
    for (const HfTensor::Part& part : tensor.parts) {
      parts.push_back(MaskOf(LayoutOf(part)));
    }
    const std::vector<uint8_t> mask = StackParts(tensor, std::move(parts));
    std::vector<uint8_t> bits((mask.size() + 7) / 8, 0);
    for (size_t i = 0; i < mask.size(); ++i) {
      bits[i / 8] = static_cast<uint8_t>(bits[i / 8] | mask[i] << (i % 8));
    }
    return bits;
  }

  std::string LayoutText(const HfTensor& tensor) const {
    nlohmann::ordered_json parts = nlohmann::ordered_json::array();
    int64_t nonzero = 0;
    for (const HfTensor::Part& part : tensor.parts) {
      const SparseLayout layout = LayoutOf(part);
      const bool swap = tensor.transposed;
      nonzero += layout.nonzero_count();
      parts.push_back({{"parameter", part.parameter},
                       {"kind", NameOf(layout.kind())},
                       {"block_rows", swap ? layout.block_in() : layout.block_out()},
                       {"block_cols", swap ? layout.block_out() : layout.block_in()},
                       {"density", 1.0 - layout.sparsity()}});
      const WeightParts& stored = parts_of_.at(part.parameter);
      if (!stored.has_factors()) continue;
      const Parameter& a = parameters()[stored.low_rank_a];
      parts.back()["low_rank"] = {{"rank", a.shape[0]}, {"scale", a.factor_scale}};
    }
    const double cells = static_cast<double>(tensor.out() * tensor.in());
    nlohmann::ordered_json json = {{"shape", tensor.FileShape()},
                                   {"density", static_cast<double>(nonzero) / cells},
                                   {"parts", parts}};
    return json.dump();
  }

  Status WriteText(const std::string& name, const std::string& text) const {
    ASSIGN_OR_RETURN(DurableFile file, DurableFile::Create(out_dir_ + "/" + name));
    RETURN_IF_ERROR(file.Append(text));
    return file.Close();
  }

  const CheckpointReader& reader_;
  const ExportOptions& options_;
  const std::string out_dir_;
  std::vector<HfTensor> tensors_;
  std::map<std::string, WeightParts> parts_of_;
  SafetensorsMetadata metadata_;
};

}  // namespace

Status ExportHuggingFace(const CheckpointReader& reader, const std::string& out_dir,
                         const ExportOptions& options) {
  CHECK(options.dtype == DType::kBF16 || options.dtype == DType::kF32);
  RETURN_IF_ERROR(CheckExpressible(reader.info().model));
  RETURN_IF_ERROR(CheckReplaceable(out_dir));
  ASSIGN_OR_RETURN(StagedDirectory staged, StagedDirectory::Begin(out_dir));
  const Exporter exporter(reader, options, staged.path());
  RETURN_IF_ERROR(exporter.CheckParameters());
  RETURN_IF_ERROR(exporter.WriteModel());
  RETURN_IF_ERROR(exporter.WriteLayouts());
  RETURN_IF_ERROR(exporter.WriteConfigs());
  return staged.Commit();
}

}  // namespace filigree

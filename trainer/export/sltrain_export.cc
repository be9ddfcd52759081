#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "trainer/checkpoint/durable_file.h"
#include "trainer/checkpoint/merged_weight.h"
#include "trainer/checkpoint/safetensors.h"
#include "trainer/checkpoint/stored_values.h"
#include "trainer/export/huggingface_config.h"
#include "trainer/export/huggingface_names.h"
#include "trainer/export/huggingface_tokenizer.h"
#include "trainer/export/sltrain_checkpoint.h"

namespace filigree {
namespace {

// A tensor of the file and the parameter that it comes from.
struct Source {
  TensorSpec spec;
  int parameter = 0;
};

class SltrainExporter {
 public:
  SltrainExporter(const CheckpointReader& reader, DType dtype) : reader_(reader), dtype_(dtype) {}

  // Names every tensor, and finds the rank and the scale that all factors share.
  Status Plan() {
    std::vector<Source> values;
    for (const HfTensor& tensor : HfTensorsOf(reader_.info().model)) {
      const std::string& name = tensor.parts[0].parameter;
      const WeightParts parts = FindWeightParts(parameters(), name);
      if (!parts.has_factors() && parts.weight >= 0 && IsDense(parts.weight)) {
        values.push_back({{tensor.name, dtype_, tensor.FileShape()}, parts.weight});
        continue;
      }
      RETURN_IF_ERROR(CheckParts(name, parts));
      const std::string prefix = tensor.name.substr(0, tensor.name.rfind('.'));
      const int64_t stored = parameters()[parts.weight].layout.stored_count();
      indices_.push_back({{prefix + ".sparse_index", DType::kI64, {stored}}, parts.weight});
      values.push_back({{prefix + ".sparse_value", dtype_, {stored}}, parts.weight});
      for (const auto& [suffix, index] :
           {std::pair(".lora_A", parts.low_rank_a), std::pair(".lora_B", parts.low_rank_b)}) {
        values.push_back({{prefix + suffix, dtype_, parameters()[index].shape}, index});
      }
      logical_ += parameters()[parts.weight].logical_count();
      stored_ += stored;
    }
    values_ = std::move(values);
    if (rank_ > 0) return OkStatus();
    return InvalidInput(reader_.directory() +
                        ": holds no sparse_plus_low_rank weights; export it " +
                        "without --format sltrain");
  }

  Status Write(const std::string& directory) const {
    std::vector<TensorSpec> specs;
    for (const auto* sources : {&indices_, &values_}) {
      for (const Source& source : *sources) specs.push_back(source.spec);
    }
    ASSIGN_OR_RETURN(SafetensorsWriter file,
                     SafetensorsWriter::Create(directory + "/model.safetensors", specs, {}));
    for (const Source& source : indices_) {
      const std::vector<int64_t> cells = parameters()[source.parameter].layout.LogicalIndices();
      RETURN_IF_ERROR(file.Append(cells.data(), source.spec.bytes()));
    }
    for (const Source& source : values_) RETURN_IF_ERROR(WriteValues(source, &file));
    RETURN_IF_ERROR(file.Close());

    const ModelSpec& model = reader_.info().model;
    ASSIGN_OR_RETURN(const SpecialTokens tokens,
                     ExportTokenizer(reader_.tokenizer_dir(), directory, model.max_positions));
    RETURN_IF_ERROR(WriteText(directory + "/config.json", HfConfigText(model, dtype_, tokens)));
    const nlohmann::ordered_json splora = {
        {"r", rank_},
        {"lora_alpha", scale_ * static_cast<double>(rank_)},
        {"lora_dropout", 0.0},
        {"sp_ratio", static_cast<double>(stored_) / static_cast<double>(logical_)},
        {"target_modules", {"attn", "mlp", "attention"}},
        {"trainable_scaling", false}};
    return WriteText(directory + "/splora_config.json", splora.dump(2) + "\n");
  }

 private:
  const std::vector<Parameter>& parameters() const { return reader_.info().parameters; }
  bool IsDense(int index) const { return parameters()[index].layout.kind() == LayoutKind::kDense; }

  Status CheckParts(const std::string& name, const WeightParts& parts) {
    if (!parts.has_factors() || parts.weight < 0 ||
        parameters()[parts.weight].layout.kind() != LayoutKind::kUnstructured) {
      return InvalidInput(reader_.directory() + ": " + name +
                          " is not low-rank factors plus single weights, which is what SLTrain's "
                          "checkpoints hold; export it without --format sltrain");
    }
    const Parameter& a = parameters()[parts.low_rank_a];
    if (rank_ == 0) {
      rank_ = a.shape[0];
      scale_ = a.factor_scale;
    }
    if (a.shape[0] == rank_ && a.factor_scale == scale_) return OkStatus();
    return InvalidInput(reader_.directory() + ": " + name +
                        " has another rank or scale than the weights before it, and SLTrain's "
                        "checkpoints have one of each");
  }

  Status WriteValues(const Source& source, SafetensorsWriter* file) const {
    ASSIGN_OR_RETURN(const std::vector<float> segment,
                     reader_.ReadSegment(source.parameter, CheckpointArray::kMaster));
    const std::vector<float> values =
        NonzerosOfSegment(parameters()[source.parameter].layout, segment);
    if (dtype_ == DType::kF32) return file->Append(values.data(), source.spec.bytes());
    const std::vector<BFloat16> rounded(values.begin(), values.end());
    return file->Append(rounded.data(), source.spec.bytes());
  }

  static Status WriteText(const std::string& path, const std::string& text) {
    ASSIGN_OR_RETURN(DurableFile file, DurableFile::Create(path));
    RETURN_IF_ERROR(file.Append(text));
    return file.Close();
  }

  const CheckpointReader& reader_;
  const DType dtype_;
  std::vector<Source> indices_, values_;
  int64_t rank_ = 0, logical_ = 0, stored_ = 0;
  double scale_ = 1;
};

}  // namespace

Status ExportSltrain(const CheckpointReader& reader, const std::string& out_dir, DType dtype) {
  CHECK(dtype == DType::kBF16 || dtype == DType::kF32);
  std::error_code error;
  if (std::filesystem::exists(out_dir, error) && !std::filesystem::is_empty(out_dir, error)) {
    return InvalidInput(out_dir + ": is there already; choose an empty --out");
  }
  if (reader.info().model.family != ModelFamily::kLlama) {
    return InvalidInput(reader.directory() + ": SLTrain's checkpoints are llamas");
  }
  const ModelSpec& model = reader.info().model;
  if (!model.layer_shapes.empty() || model.norm_divisor() != model.width) {
    return InvalidInput(reader.directory() +
                        ": was pruned, and SLTrain's models have layers of one size and norms that "
                        "divide by their width; leave out --format sltrain");
  }
  SltrainExporter exporter(reader, dtype);
  RETURN_IF_ERROR(exporter.Plan());
  ASSIGN_OR_RETURN(StagedDirectory staged, StagedDirectory::Begin(out_dir));
  RETURN_IF_ERROR(exporter.Write(staged.path()));
  return staged.Commit();
}

}  // namespace filigree

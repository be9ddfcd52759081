#include "trainer/inference.h"

#include <algorithm>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/checkpoint/merged_weight.h"
#include "trainer/checkpoint/stored_values.h"

namespace filigree {
namespace {

// The row of the registry whose factors have a nonlinearity between them.
std::string NonlinearParameterisation() {
  const auto rows = Parameterisations();
  const auto row = std::find_if(rows.begin(), rows.end(), [](const Parameterisation& row) {
    return row.factors == FactorKind::kNonlinear;
  });
  CHECK(row != rows.end());
  return std::string(row->name);
}

// Linears that no dense weight expresses keep their parameterisation; all others are merged.
std::vector<SparsitySpec> NonlinearParts(const std::vector<Parameter>& parameters) {
  constexpr std::string_view kSuffix = ".low_rank_a";
  std::vector<SparsitySpec> sparsity;
  for (const Parameter& parameter : parameters) {
    if (parameter.factor != FactorKind::kNonlinear || !parameter.name.ends_with(kSuffix)) continue;
    SparsitySpec entry;
    entry.include = {parameter.name.substr(0, parameter.name.size() - kSuffix.size()) + ".weight"};
    entry.parameterisation = NonlinearParameterisation();
    entry.rank = parameter.shape[0];
    sparsity.push_back(std::move(entry));
  }
  return sparsity;
}

// Parameters of both sides carry the same names; the model's order is the creation order.
StatusOr<std::vector<float>> ReadDenseSegment(const CheckpointReader& reader,
                                              const Parameter& parameter) {
  const std::vector<Parameter>& stored = reader.info().parameters;
  const WeightParts parts = FindWeightParts(stored, parameter.name);
  if (parts.empty()) return InvalidInput(reader.directory() + ": holds no " + parameter.name);
  ASSIGN_OR_RETURN(const std::vector<float> values, MergedWeight(stored, parts, [&](int index) {
                     return reader.ReadSegment(index, CheckpointArray::kMaster);
                   }));
  return SegmentOfNonzeros(parameter, values);
}

}  // namespace

std::unique_ptr<Model> CreateInferenceModel(const CheckpointInfo& info, Backend& backend) {
  const std::map<std::string, SparseLayout> no_layouts;
  return Model::Create(info.model, NonlinearParts(info.parameters), info.seed, no_layouts, backend);
}

FlatLayout InferenceLayout(const Model& model) {
  std::vector<SegmentSpec> segments;
  for (const Parameter& parameter : model.parameters()) {
    segments.push_back({.count = parameter.segment_count()});
  }
  return FlatLayout::Build(segments, /*shards=*/1, /*bucket_elements=*/1 << 24);
}

StatusOr<std::unique_ptr<InferenceModel>> InferenceModel::Load(const CheckpointReader& reader,
                                                               int64_t sequences, int64_t seq_len,
                                                               Backend& backend, Stream& stream) {
  auto result = std::make_unique<InferenceModel>();
  result->model_ = CreateInferenceModel(reader.info(), backend);
  result->buffer_ = std::make_unique<FlatBuffer>(
      FlatBuffer::ValuesOnly(backend.device(), InferenceLayout(*result->model_),
                             backend.device().compute_dtype(), stream));
  for (size_t i = 0; i < result->model_->parameters().size(); ++i) {
    ASSIGN_OR_RETURN(const std::vector<float> values,
                     ReadDenseSegment(reader, result->model_->parameters()[i]));
    ScatterSegment(*result->buffer_, static_cast<int>(i), StateKind::kMaster,
                   std::as_bytes(std::span<const float>(values)), stream);
  }
  result->model_->Bind(*result->buffer_);
  result->model_->ReserveActivations(sequences, seq_len, /*training=*/false);
  result->model_->ValuesChanged();
  return result;
}

}  // namespace filigree

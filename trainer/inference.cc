#include "trainer/inference.h"

#include <algorithm>
#include <map>
#include <string>
#include <vector>

namespace filigree {
namespace {

// Parameters of both sides carry the same names; the dense model's order is the creation order.
StatusOr<std::vector<float>> ReadDenseSegment(const CheckpointReader& reader,
                                              const Parameter& parameter) {
  const std::vector<Parameter>& stored = reader.info().parameters;
  for (size_t i = 0; i < stored.size(); ++i) {
    if (stored[i].name != parameter.name) continue;
    ASSIGN_OR_RETURN(std::vector<float> values, reader.ReadDense(static_cast<int>(i)));
    values.resize(parameter.segment_count(), 0.0f);  // padded vocabulary rows
    return values;
  }
  return InvalidInput(reader.directory() + ": holds no " + parameter.name);
}

}  // namespace

StatusOr<std::unique_ptr<InferenceModel>> InferenceModel::Load(const CheckpointReader& reader,
                                                               int64_t sequences, int64_t seq_len,
                                                               Backend& backend, Stream& stream) {
  auto result = std::make_unique<InferenceModel>();
  const std::map<std::string, SparseLayout> no_layouts;
  result->model_ = Model::Create(reader.info().model, {}, reader.info().seed, no_layouts, backend);
  std::vector<SegmentSpec> segments;
  for (const Parameter& parameter : result->model_->parameters()) {
    segments.push_back({.count = parameter.segment_count()});
  }
  FlatLayout layout = FlatLayout::Build(segments, /*shards=*/1, /*bucket_elements=*/1 << 24);
  result->buffer_ = std::make_unique<FlatBuffer>(FlatBuffer::ValuesOnly(
      backend.device(), std::move(layout), backend.device().compute_dtype(), stream));
  for (size_t i = 0; i < segments.size(); ++i) {
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

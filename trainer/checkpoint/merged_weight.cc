#include "trainer/checkpoint/merged_weight.h"

#include <string_view>

#include "trainer/checkpoint/stored_values.h"

namespace filigree {
namespace {

constexpr std::string_view kWeightSuffix = ".weight";

// dense [out, in] += scale * b [out, rank] a [rank, in].
void AddProduct(const Parameter& a_parameter, const std::vector<float>& a,
                const std::vector<float>& b, std::vector<float>* dense) {
  const int64_t rank = a_parameter.shape[0], in = a_parameter.shape[1];
  const int64_t out = static_cast<int64_t>(b.size()) / rank;
  const auto scale = static_cast<float>(a_parameter.factor_scale);
#pragma omp parallel for
  for (int64_t i = 0; i < out; ++i) {
    float* row = dense->data() + i * in;
    for (int64_t k = 0; k < rank; ++k) {
      const float factor = scale * b[i * rank + k];
      const float* from = a.data() + k * in;
      for (int64_t j = 0; j < in; ++j) row[j] += factor * from[j];
    }
  }
}

}  // namespace

WeightParts FindWeightParts(const std::vector<Parameter>& parameters, const std::string& name) {
  WeightParts parts;
  const std::string_view linear =
      name.ends_with(kWeightSuffix)
          ? std::string_view(name).substr(0, name.size() - kWeightSuffix.size())
          : std::string_view();
  for (size_t i = 0; i < parameters.size(); ++i) {
    const std::string_view other = parameters[i].name;
    const int index = static_cast<int>(i);
    if (other == name) parts.weight = index;
    if (linear.empty() || !other.starts_with(linear)) continue;
    if (other.substr(linear.size()) == ".low_rank_a") parts.low_rank_a = index;
    if (other.substr(linear.size()) == ".low_rank_b") parts.low_rank_b = index;
  }
  return parts;
}

StatusOr<std::vector<float>> MergedWeight(const std::vector<Parameter>& parameters,
                                          const WeightParts& parts, const SegmentSource& read) {
  CHECK(!parts.empty());
  const auto read_dense = [&](int index) -> StatusOr<std::vector<float>> {
    const SparseLayout& layout = parameters[index].layout;
    ASSIGN_OR_RETURN(const std::vector<float> segment, read(index));
    return DenseOfNonzeros(layout, NonzerosOfSegment(layout, segment));
  };
  std::vector<float> dense;
  if (parts.weight >= 0) {
    ASSIGN_OR_RETURN(dense, read_dense(parts.weight));
  }
  if (!parts.has_factors()) return dense;
  const Parameter& a = parameters[parts.low_rank_a];
  const Parameter& b = parameters[parts.low_rank_b];
  if (a.factor == FactorKind::kNonlinear) {
    return InvalidInput(a.name + " and " + b.name +
                        " have a nonlinearity between them, so there is no weight that they could "
                        "be merged to; go on with the checkpoint itself");
  }
  ASSIGN_OR_RETURN(const std::vector<float> a_values, read_dense(parts.low_rank_a));
  ASSIGN_OR_RETURN(const std::vector<float> b_values, read_dense(parts.low_rank_b));
  dense.resize(b.shape[0] * a.shape[1], 0.0f);
  AddProduct(a, a_values, b_values, &dense);
  return dense;
}

}  // namespace filigree

#include "trainer/model/parameter_table.h"

#include <algorithm>
#include <iterator>

namespace filigree {
namespace {

LinearGroup MakeGroup(const std::vector<LinearSpec>& parts,
                      const std::vector<SparsitySpec>& sparsity, uint64_t seed,
                      const std::map<std::string, SparseLayout>& layouts, Backend& backend) {
  std::vector<std::unique_ptr<Linear>> linears;
  for (const LinearSpec& part : parts) {
    const std::string weight = part.name + ".weight";
    const SparsitySpec match = MatchSparsity(weight, sparsity);
    const Parameterisation* row = FindParameterisation(match.parameterisation);
    CHECK(row != nullptr) << match.parameterisation;
    const auto given = layouts.find(weight);
    SparseLayout layout =
        given != layouts.end() ? given->second : row->draw_layout(part, match, seed);
    linears.push_back(row->create(part, match, std::move(layout), backend));
  }
  return LinearGroup(std::move(linears), parts, backend);
}

}  // namespace

int ParameterTable::Add(Parameter parameter) {
  parameters_.push_back(std::move(parameter));
  return static_cast<int>(parameters_.size()) - 1;
}

void ParameterTable::Bind(const FlatBuffer& buffer) {
  bound_.clear();
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const int index = static_cast<int>(i);
    CHECK_EQ(buffer.layout().segments()[i].count, parameters_[i].segment_count());
    bound_.push_back({buffer.Values(index), buffer.Grads(index), &overwrite_});
  }
  ValuesChanged();
}

std::optional<PassState> ParameterTable::NextPass() const {
  const auto stale = std::ranges::count(stale_, true);
  if (stale != 0 && stale != std::ssize(stale_)) return std::nullopt;
  return PassState{.materialises = stale != 0, .overwrites = overwrite_};
}

void ParameterTable::PassWasReplayed() {
  stale_.assign(parameters_.size(), false);
  EndOverwrite();
}

bool ParameterTable::Use(int index) {
  if (!stale_[index]) return false;
  stale_[index] = false;
  if (hooks_.before_use) hooks_.before_use(index);
  return true;
}

TableLinear::TableLinear(const std::vector<LinearSpec>& parts,
                         const std::vector<SparsitySpec>& sparsity, uint64_t seed,
                         const std::map<std::string, SparseLayout>& layouts, Backend& backend,
                         ParameterTable& table)
    : table_(table), group_(MakeGroup(parts, sparsity, seed, layouts, backend)) {
  first_ = static_cast<int>(table.parameters().size());
  for (const auto& part : group_.parts()) {
    for (Parameter& parameter : part->Parameters()) {
      if (parts.size() > 1) parameter.product = first_;
      table.Add(std::move(parameter));
    }
  }
  count_ = static_cast<int>(table.parameters().size()) - first_;
}

void TableLinear::Bind(TensorView scratch) {
  int next = first_;
  for (const auto& part : group_.parts()) {
    std::vector<BoundParameter> bound;
    const auto count = static_cast<int>(part->Parameters().size());
    for (int i = 0; i < count; ++i) bound.push_back(table_.bound(next++));
    part->Bind(bound, scratch);
  }
  group_.JoinParts(scratch);
}

bool TableLinear::BiasesAdjacent(const FlatLayout& layout) const {
  if (!group_.has_bias()) return false;
  int next = first_;
  std::vector<int64_t> offsets;  // of the biases, each the last of its part's parameters
  for (const auto& part : group_.parts()) {
    next += static_cast<int>(part->Parameters().size());
    offsets.push_back(layout.segments()[next - 1].offset);
  }
  for (size_t i = 0; i < offsets.size(); ++i) {
    if (offsets[i] - offsets[0] != group_.bias_begin(static_cast<int>(i))) return false;
  }
  return true;
}

void TableLinear::CollectStatistics(const std::map<std::string, LinearStatistics>& statistics) {
  std::vector<LinearStatistics> own;
  bool any = false;
  for (const auto& part : group_.parts()) {
    own.emplace_back();
    for (const Parameter& parameter : part->Parameters()) {
      const auto found = statistics.find(parameter.name);
      if (found == statistics.end()) continue;
      own.back() = found->second;
      any = true;
    }
  }
  if (!any) own.clear();
  group_.Collect(std::move(own));
}

void TableLinear::Forward(ConstTensorView x, TensorView y, TensorView inner,
                          const ProductEpilogue& epilogue, Stream& stream) {
  bool changed = false;
  for (int i = first_; i < first_ + count_; ++i) changed |= table_.Use(i);
  if (changed) group_.Materialize(stream);
  group_.Forward(x, y, inner, epilogue, stream);
}

void TableLinear::Backward(ConstTensorView x, ConstTensorView dy, const InnerActivations& inner,
                           const InputGrad& input_grad, Stream& stream) {
  group_.Backward(x, dy, inner, input_grad, stream);
  for (int i = first_ + count_ - 1; i >= first_; --i) table_.GradReady(i);
}

}  // namespace filigree

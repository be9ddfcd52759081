// How a group becomes one product (LinearGroup::JoinParts).
#include <algorithm>
#include <utility>

#include "trainer/linear/dense_product.h"
#include "trainer/linear/formed_product.h"
#include "trainer/linear/linear.h"
#include "trainer/linear/low_rank_group.h"

namespace filigree {
namespace {

// Both lie in one array (a flat buffer), or are empty.
int64_t ElementsBetween(ConstTensorView from, ConstTensorView to) {
  return (static_cast<const std::byte*>(to.data()) - static_cast<const std::byte*>(from.data())) /
         static_cast<int64_t>(SizeOf(from.dtype()));
}

// The views as one, where they lie one after the other; else nothing.
TensorView OneAfterTheOther(const std::vector<TensorView>& views) {
  if (views.empty() || views.front().empty()) return {};
  int64_t count = 0;
  for (const TensorView& view : views) {
    if (ElementsBetween(views.front(), view) != count) return {};
    count += view.size();
  }
  return TensorView(views.front().data(), views.front().dtype(), {count});
}

// The biases' values or gradients as one; nothing where there are none, or apart.
TensorView OneAfterTheOther(const std::vector<BoundParameter>& biases,
                            TensorView BoundParameter::*array) {
  std::vector<TensorView> views;
  for (const BoundParameter& bias : biases) views.push_back(bias.*array);
  return OneAfterTheOther(views);
}

bool Pads(const LinearSpec& spec) {
  return spec.padded_out() != spec.out || spec.padded_in() != spec.in;
}

}  // namespace

std::unique_ptr<PreparedLayout> LinearGroup::JoinedBlocks() const {
  if (parts_.size() < 2) return nullptr;
  std::vector<const PreparedLayout*> weights;
  std::vector<int64_t> value_begin = {0};
  for (size_t i = 0; i < parts_.size(); ++i) {
    const std::optional<BlockedProduct> product = parts_[i]->blocked_product();
    if (!product || Pads(specs_[i])) return nullptr;
    weights.push_back(product->weight);
    value_begin.push_back(value_begin.back() + product->weight->layout().stored_count());
  }
  value_begin.pop_back();
  return backend_.PrepareGroup(weights, value_begin);
}

void LinearGroup::JoinParts(TensorView scratch) {
  joined_.reset();
  formed_.reset();
  dense_.reset();
  products_.clear();
  factors_a_.clear();
  factors_b_.clear();
  factors_.reset();
  JoinBiases({}, DType::kF32);
  if (JoinsFormed()) {
    JoinFormed(scratch);
  } else if (parts_.size() > 1 && !JoinDense()) {
    JoinBlocked();
  }
}

void LinearGroup::JoinFormed(TensorView scratch) {
  std::vector<BoundParameter> biases;
  for (const auto& part : parts_) biases.push_back(part->formed_part()->bias);
  const DType dtype = backend_.device().compute_dtype();
  JoinBiases(std::move(biases), dtype);
  formed_ = std::make_unique<FormedProduct>(FormedWeights(), backend_);
  formed_->Bind(dtype, scratch);
}

bool LinearGroup::JoinDense() {
  if (!backend_.joins_products() || specs_.front().padded_in() != specs_.front().in) return false;
  std::vector<TensorView> weights, grads;
  std::vector<BoundParameter> biases;
  const DenseProduct* first = nullptr;
  for (const auto& part : parts_) {
    const std::optional<DensePart> dense = part->dense_part();
    if (!dense) return false;
    if (first == nullptr) first = dense->product;
    weights.push_back(dense->product->weight);
    grads.push_back(dense->product->grads);
    biases.push_back(dense->bias);
  }
  const TensorView weight = OneAfterTheOther(weights), gradient = OneAfterTheOther(grads);
  const bool trains = !grads.front().empty();
  if (weight.empty() || (trains && gradient.empty())) return false;
  // Biases go as the weights do: a copy of them would take memory that nothing else here takes.
  if (specs_.front().bias && OneAfterTheOther(biases, &BoundParameter::values).empty())
    return false;
  const auto matrix = [&](TensorView all) {
    return all.empty() ? all : all.Reshape({out(), first->weight.cols()});
  };
  JoinBiases(std::move(biases), weight.dtype());
  dense_ = std::make_unique<DenseProduct>(DenseProduct{
      .weight = matrix(weight), .grads = matrix(gradient), .overwrite = first->overwrite});
  return true;
}

bool LinearGroup::JoinBlocked() {
  if (std::ranges::any_of(specs_, Pads)) return false;
  std::vector<const PreparedLayout*> weights;
  std::vector<int64_t> value_begin, grad_begin;
  std::vector<BoundParameter> biases;
  std::vector<const LowRankFactors*> group;
  for (const auto& part : parts_) {
    const std::optional<BlockedProduct> product = part->blocked_product();
    if (!product) return false;
    products_.push_back(*product);
    if (const LowRankFactors* factors = product->factors) {
      factors_a_.push_back(factors->a());
      factors_b_.push_back(factors->b());
      group.push_back(factors);
    }
    const BlockedProduct& first = products_.front();
    weights.push_back(product->weight);
    biases.push_back(product->bias);
    value_begin.push_back(ElementsBetween(first.values.values, product->values.values));
    grad_begin.push_back(ElementsBetween(first.values.grads, product->values.grads));
  }
  if (!factors_a_.empty() && factors_a_.size() != parts_.size()) return false;
  const bool trains = !products_.front().values.grads.empty();
  if (trains && grad_begin != value_begin) return false;
  if (!std::is_sorted(value_begin.begin(), value_begin.end())) return false;
  joined_ = backend_.PrepareGroup(weights, value_begin);
  if (!joined_) return false;
  const int64_t extent = value_begin.back() + products_.back().values.values.size();
  const auto span = [&](TensorView first) {
    return TensorView(first.data(), first.dtype(), {extent});
  };
  joined_values_ = span(products_.front().values.values);
  if (trains) joined_grads_ = span(products_.front().values.grads);
  JoinBiases(std::move(biases), joined_values_.dtype());
  if (!group.empty()) factors_ = std::make_unique<LowRankGroup>(group, backend_);
  return true;
}

void LinearGroup::JoinBiases(std::vector<BoundParameter> biases, DType dtype) {
  joined_bias_ = DeviceBuffer();
  biases_.clear();
  if (!biases.empty() && !biases.front().values.empty()) biases_ = std::move(biases);
  bias_ = OneAfterTheOther(biases_, &BoundParameter::values);
  bias_grads_ = OneAfterTheOther(biases_, &BoundParameter::grads);
  if (!bias_.empty() || biases_.empty()) return;
  joined_bias_ = backend_.device().Allocate(out() * SizeOf(dtype), "compute_copies");
  bias_ = joined_bias_.View(dtype, out());
}

}  // namespace filigree

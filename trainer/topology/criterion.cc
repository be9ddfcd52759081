#include "trainer/topology/criterion.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "kernels/sparse/unit_layout.h"

namespace filigree {
namespace {

float Movement(const InitialValues& initial, float value, int64_t cell) {
  const double now = value, then = initial[cell];
  return static_cast<float>(0.5 * (now * now - then * then));
}

// Scores that are no product of arrays: summed on the host.
void ScoreOnHost(const Criterion& criterion, const ScoreInputs& inputs, TensorView scores,
                 Device& device, Stream& stream) {
  const Parameter& parameter = *inputs.parameter;
  const SparseLayout& layout = parameter.layout;
  std::vector<float> values(static_cast<size_t>(layout.stored_count()));
  device.CopyAsync(TensorView(values.data(), DType::kF32, {layout.stored_count()}), inputs.values,
                   stream);
  stream.Synchronize();
  std::vector<float> host(static_cast<size_t>(UnitCount(layout)), 0.0f);
  const int64_t area = int64_t{layout.block_out()} * layout.block_in();
  const std::vector<int64_t> cells = layout.LogicalIndices();
  const InitialValues initial(parameter, inputs.seed);
  const auto offsets = layout.row_offsets();
#pragma omp parallel for
  for (int64_t row = 0; row < layout.grid_rows(); ++row) {
    for (int64_t p = offsets[row]; p < offsets[row + 1]; ++p) {
      float& score = host[row * layout.grid_cols() + layout.columns()[p]];
      for (int64_t slot = p * area; slot < (p + 1) * area; ++slot) {
        if (cells[slot] < 0) continue;
        score += criterion.score(initial, values[slot], cells[slot]);
      }
    }
  }
  device.CopyAsync(scores, ConstTensorView(host.data(), DType::kF32, {scores.size()}), stream);
  stream.Synchronize();
}

}  // namespace

std::span<const Criterion> Criteria() {
  static constexpr std::array rows = {
      Criterion{"magnitude", "|w|", {.value = true}},
      Criterion{"random", "uniform"},
      Criterion{"gradient", "|g|", {.grad = true}},
      Criterion{"taylor", "|w g|", {.value = true, .grad = true}},
      Criterion{"snip", "|w g| at the start", {.value = true, .grad = true}},
      Criterion{"grasp",
                "w (H g) at the start",
                {.value = true, .hessian_grad = true, .absolute = false}},
      Criterion{"wanda",
                "|w| times the norm of its input",
                {.value = true, .input_norm = true}},
      Criterion{"movement", "sum of w dw", {}, &Movement}};
  return rows;
}

const Criterion* FindCriterion(std::string_view name) {
  for (const Criterion& row : Criteria()) {
    if (row.name == name) return &row;
  }
  return nullptr;
}

ConstTensorView ScoreStored(const Criterion& criterion, const ScoreInputs& inputs,
                            const PreparedLayout& weight, TensorView scores, Backend& backend,
                            Stream& stream) {
  Device& device = backend.device();
  if (criterion.score != nullptr) {
    ScoreOnHost(criterion, inputs, scores, device, stream);
    return scores;
  }
  const ScoreFactors& factors = criterion.factors;
  if (!factors.any()) return {};
  ScoreUnitsArgs args = {.weight = &weight, .absolute = factors.absolute, .scores = scores};
  if (factors.value) args.values = inputs.values;
  if (factors.grad) args.dense = inputs.grads;
  if (factors.hessian_grad) args.dense = inputs.hessian_grads;
  std::vector<float> norms;
  DeviceBuffer buffer;
  if (factors.input_norm) {
    const auto count = static_cast<int64_t>(inputs.input_squares.size());
    norms.resize(inputs.input_squares.size());
    std::ranges::transform(inputs.input_squares, norms.begin(),
                           [](double sum) { return static_cast<float>(std::sqrt(sum)); });
    buffer = device.Allocate(norms.size() * sizeof(float), "scratch");
    const TensorView on_device = buffer.View(DType::kF32, count);
    device.CopyAsync(on_device, ConstTensorView(norms.data(), DType::kF32, {count}), stream);
    args.column_factors = on_device;
  }
  backend.ScoreUnits(args, stream);
  if (factors.input_norm) stream.Synchronize();  // `buffer` and `norms` are read until then
  return scores;
}

}  // namespace filigree

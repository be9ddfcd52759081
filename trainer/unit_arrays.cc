#include "trainer/unit_arrays.h"

#include <algorithm>

namespace filigree {
namespace {

constexpr int64_t kSums = sizeof(UnitSums) / sizeof(double);

CellUnits CellsOf(const Parameter& parameter, const ParameterUnits& units, int64_t first) {
  CHECK(parameter.layout.kind() == LayoutKind::kDense) << parameter.name;
  return {.first = first,
          .columns = parameter.layout.row_pitch(),
          .row_extent = units.rows.extent,
          .column_extent = units.columns.extent};
}

// Calls fn(index, parameter, its units) for each parameter that has some.
template <typename Fn>
void ForEachParameter(const TrainingState& state, const UnitTable& table, const Fn& fn) {
  for (size_t i = 0; i < state.parameters().size(); ++i) {
    const Parameter& parameter = state.parameters()[i];
    const auto found = table.parameters().find(parameter.name);
    if (found != table.parameters().end()) fn(static_cast<int>(i), parameter, found->second);
  }
}

// The units' factors on the device, of values or of moments.
class DeviceFactors {
 public:
  DeviceFactors(const std::vector<float>& factors, const UnitTable& table, Backend& backend,
                Stream& stream)
      : factors_(factors), table_(table), backend_(backend), stream_(stream) {
    const auto count = static_cast<int64_t>(factors.size());
    buffer_ = backend.device().Allocate(factors.size() * sizeof(float), "scratch");
    backend.device().CopyAsync(buffer_.View(DType::kF32, count),
                               ConstTensorView(factors.data(), DType::kF32, {count}), stream);
  }

  void Scale(TensorView values, const CellUnits& cells, const ParameterUnits& units) const {
    const ConstTensorView rows = Of(units.rows), columns = Of(units.columns);
    if (values.empty() || (rows.empty() && columns.empty())) return;
    backend_.ScaleUnits(
        {.values = values, .row_factors = rows, .column_factors = columns, .units = cells},
        stream_);
  }

 private:
  // Empty where the set keeps all.
  ConstTensorView Of(const AxisUnits& axis) const {
    if (axis.set < 0) return {};
    const UnitSet& set = table_.sets()[axis.set];
    const auto begin = factors_.begin() + set.first;
    if (std::all_of(begin, begin + set.count, [](float factor) { return factor == 1; })) return {};
    return buffer_.View(DType::kF32, set.count, static_cast<size_t>(set.first) * sizeof(float));
  }

  const std::vector<float>& factors_;
  const UnitTable& table_;
  Backend& backend_;
  Stream& stream_;
  DeviceBuffer buffer_;
};

}  // namespace

void ScaleUnits(TrainingState& state, const UnitTable& table, const std::vector<float>& factors,
                Backend& backend, Stream& stream) {
  CHECK_EQ(static_cast<int64_t>(factors.size()), table.unit_count());
  std::vector<float> moment_factors;
  for (const float factor : factors) moment_factors.push_back(factor == 0 ? 0.0f : 1.0f);
  const DeviceFactors of_values(factors, table, backend, stream);
  const DeviceFactors of_moments(moment_factors, table, backend, stream);
  const FlatBuffer& buffer = state.buffer();
  ForEachParameter(state, table, [&](int i, const Parameter& parameter, const auto& units) {
    of_values.Scale(buffer.Values(i), CellsOf(parameter, units, 0), units);
    const OwnedRange own = buffer.layout().Owned(i, buffer.shard());
    if (own.count == 0) return;
    const CellUnits cells = CellsOf(parameter, units, own.segment_begin);
    if (buffer.has_master()) of_values.Scale(buffer.Master(own), cells, units);
    const MomentViews moments = buffer.Moments(own);
    of_moments.Scale(moments.m, cells, units);
    of_moments.Scale(moments.v, cells, units);
  });
  stream.Synchronize();  // the factors' memory goes
  state.model().ValuesChanged();
}

std::vector<UnitSums> SumUnits(const TrainingState& state, const UnitTable& table, UnitCells cells,
                               Communicator& communicator, Backend& backend, Stream& stream,
                               int64_t* bytes) {
  const int64_t count = kSums * table.unit_count();
  const DeviceBuffer memory =
      backend.device().Allocate(static_cast<size_t>(count) * sizeof(double), "scratch");
  const TensorView sums = memory.View(DType::kF64, count);
  backend.device().ZeroAsync(sums, stream);
  const FlatBuffer& buffer = state.buffer();
  const auto sums_of = [&](const AxisUnits& axis) {
    if (axis.set < 0 || (cells == UnitCells::kGate && !axis.gate)) return TensorView();
    const UnitSet& set = table.sets()[axis.set];
    return sums.Range(kSums * set.first, kSums * set.count);
  };
  ForEachParameter(state, table, [&](int i, const Parameter& parameter, const auto& units) {
    const OwnedRange own = buffer.layout().Owned(i, buffer.shard());
    const TensorView rows = sums_of(units.rows), columns = sums_of(units.columns);
    if (own.count == 0 || (rows.empty() && columns.empty())) return;
    backend.UnitSums({.values = buffer.Master(own),
                      .grads = buffer.Grads(own),
                      .row_sums = rows,
                      .column_sums = columns,
                      .units = CellsOf(parameter, units, own.segment_begin)},
                     stream);
  });
  if (buffer.layout().shards() > 1) {
    const std::unique_ptr<Event> ready = backend.device().NewEvent();
    ready->Record(stream);
    communicator.AllReduce(sums, ReduceOp::kSum, *ready)->Wait(stream);
    *bytes += count * static_cast<int64_t>(sizeof(double));
  }
  std::vector<UnitSums> result(static_cast<size_t>(table.unit_count()));
  backend.device().CopyAsync(TensorView(result.data(), DType::kF64, {count}), sums, stream);
  stream.Synchronize();
  return result;
}

}  // namespace filigree

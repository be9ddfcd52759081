#include "trainer/pruning/groups.h"

#include <algorithm>

#include "kernels/base/check.h"
#include "trainer/model/decoder_spec.h"
#include "trainer/pruning/progress.h"

namespace filigree {
namespace {

AxisUnits Gate(AxisUnits axis) {
  axis.gate = axis.set >= 0;
  return axis;
}

}  // namespace

const char* NameOf(UnitKind kind) {
  switch (kind) {
    case UnitKind::kAttention:
      return "attention";
    case UnitKind::kFeedForward:
      return "feed_forward";
    case UnitKind::kStem:
      return "stem";
  }
  CHECK(false) << static_cast<int>(kind);
}

UnitTable::UnitTable(const ModelSpec& model) {
  const bool prunes_stem = TraitsOf(model.family).norm == NormKind::kRms;
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    AddSet(UnitKind::kAttention, layer, model.ShapeOf(layer).kv_heads);
    AddSet(UnitKind::kFeedForward, layer, model.ShapeOf(layer).feed_forward);
  }
  const AxisUnits stem = {.set = prunes_stem ? AddSet(UnitKind::kStem, -1, model.width) : -1};
  AddVocabulary(model, stem);
  for (int64_t layer = 0; layer < model.layers; ++layer) AddLayer(model, layer, stem);
}

int UnitTable::AddSet(UnitKind kind, int64_t layer, int64_t count) {
  sets_.push_back({.kind = kind, .layer = layer, .first = unit_count(), .count = count});
  return static_cast<int>(sets_.size()) - 1;
}

// A parameter that no unit is part of is left out.
void UnitTable::Add(const std::string& name, const ParameterUnits& units) {
  const AxisUnits &rows = units.rows, &columns = units.columns;
  if (rows.set < 0 && columns.set < 0) return;
  if (rows.set >= 0) sets_[rows.set].parameters += rows.extent * units.column_count;
  if (columns.set >= 0) sets_[columns.set].parameters += columns.extent * units.row_count;
  parameters_[name] = units;
}

void UnitTable::AddVocabulary(const ModelSpec& model, const AxisUnits& stem) {
  const int64_t width = model.width;
  Add("embedding.weight",
      {.row_count = model.vocab_size, .column_count = width, .columns = Gate(stem)});
  Add("final_norm.weight", {.column_count = width, .columns = stem});
  if (model.tied_head) return;
  Add("head.weight", {.row_count = model.vocab_size, .column_count = width, .columns = stem});
}

void UnitTable::AddLayer(const ModelSpec& model, int64_t layer, const AxisUnits& stem) {
  const FamilyTraits& traits = TraitsOf(model.family);
  const std::string prefix = "layers." + std::to_string(layer) + ".";
  const LayerShape shape = model.ShapeOf(layer);
  const int64_t width = model.width;
  const int attention = static_cast<int>(2 * layer), feed_forward = attention + 1;
  const AxisUnits keys = {.set = attention, .extent = model.head_size};
  const AxisUnits queries = {.set = attention,
                             .extent = shape.heads / shape.kv_heads * model.head_size};
  const AxisUnits channels = {.set = feed_forward};
  const auto reads = [&](const std::string& name, const AxisUnits& rows) {
    const int64_t count = sets_[rows.set].count * rows.extent;
    Add(name + ".weight",
        {.row_count = count, .column_count = width, .rows = rows, .columns = stem});
    if (traits.biases) Add(name + ".bias", {.column_count = count, .columns = rows});
  };
  const auto writes = [&](const std::string& name, const AxisUnits& columns) {
    Add(name + ".weight", {.row_count = width,
                           .column_count = sets_[columns.set].count * columns.extent,
                           .rows = Gate(stem),
                           .columns = Gate(columns)});
  };
  Add(prefix + "attention_norm.weight", {.column_count = width, .columns = stem});
  reads(prefix + "attention.q", queries);
  reads(prefix + "attention.k", keys);
  reads(prefix + "attention.v", keys);
  writes(prefix + "attention.o", queries);
  Add(prefix + "mlp_norm.weight", {.column_count = width, .columns = stem});
  if (traits.gated) reads(prefix + "mlp.gate", channels);
  reads(prefix + "mlp.up", channels);
  writes(prefix + "mlp.down", channels);
}

std::vector<int64_t> LiveCounts(const UnitTable& table, std::span<const int64_t> zero_at) {
  CHECK_EQ(static_cast<int64_t>(zero_at.size()), table.unit_count());
  std::vector<int64_t> live;
  for (const UnitSet& set : table.sets()) {
    const auto begin = zero_at.begin() + set.first;
    live.push_back(std::count(begin, begin + set.count, kUnitStays));
  }
  return live;
}

std::vector<int64_t> LiveParametersOfUnits(const UnitTable& table, std::span<const int64_t> live) {
  std::vector<int64_t> parameters(table.sets().size(), 0);
  const auto cells = [&](const AxisUnits& axis, int64_t all) {
    return axis.set < 0 ? all : live[static_cast<size_t>(axis.set)] * axis.extent;
  };
  for (const auto& [name, units] : table.parameters()) {
    const AxisUnits &rows = units.rows, &columns = units.columns;
    if (rows.set >= 0) {
      parameters[static_cast<size_t>(rows.set)] += rows.extent * cells(columns, units.column_count);
    }
    if (columns.set >= 0) {
      parameters[static_cast<size_t>(columns.set)] += columns.extent * cells(rows, units.row_count);
    }
  }
  return parameters;
}

}  // namespace filigree

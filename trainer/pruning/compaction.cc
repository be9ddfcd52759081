#include "trainer/pruning/compaction.h"

#include <algorithm>
#include <numeric>

#include "kernels/base/check.h"
#include "kernels/base/math.h"

namespace filigree {
namespace {

std::vector<int64_t> All(int64_t count) {
  std::vector<int64_t> cells(static_cast<size_t>(count));
  std::iota(cells.begin(), cells.end(), 0);
  return cells;
}

std::vector<int64_t> CellsOf(const AxisUnits& axis, const Compaction& compaction, int64_t count) {
  if (axis.set < 0) return All(count);
  std::vector<int64_t> cells;
  for (const int64_t unit : compaction.kept[axis.set]) {
    for (int64_t i = 0; i < axis.extent; ++i) cells.push_back(unit * axis.extent + i);
  }
  return cells;
}

// The live units, and as many removed ones, from the back, as fill `count` up: blocks of live units
// are then mostly neighbours (Pruner::AddBlocks).
std::vector<int64_t> Keep(const UnitSet& set, const std::vector<bool>& removed, int64_t live,
                          int64_t count) {
  int64_t spare = count - live;
  std::vector<int64_t> kept;
  for (int64_t i = set.count - 1; i >= 0; --i) {
    const bool gone = removed[static_cast<size_t>(set.first + i)];
    if (gone && spare-- <= 0) continue;
    kept.push_back(i);
  }
  std::ranges::reverse(kept);
  return kept;
}

// Where all layers have come out alike they need no shapes of their own.
void SetShapes(std::vector<LayerShape> shapes, ModelSpec* model) {
  model->heads = model->kv_heads = model->feed_forward = 0;
  for (const LayerShape& shape : shapes) {
    model->heads = std::max(model->heads, shape.heads);
    model->kv_heads = std::max(model->kv_heads, shape.kv_heads);
    model->feed_forward = std::max(model->feed_forward, shape.feed_forward);
  }
  const bool alike = std::all_of(shapes.begin(), shapes.end(),
                                 [&](const LayerShape& shape) { return shape == shapes.front(); });
  model->layer_shapes = alike ? std::vector<LayerShape>() : std::move(shapes);
}

}  // namespace

std::vector<int64_t> Compaction::KeptUnits(const UnitTable& from) const {
  std::vector<int64_t> units;
  for (size_t set = 0; set < kept.size(); ++set) {
    for (const int64_t index : kept[set]) units.push_back(from.sets()[set].first + index);
  }
  return units;
}

int64_t AlignedCount(const UnitSet& set, int64_t live, const PruningSpec& pruning) {
  return std::min(set.count, AlignUp(live, pruning.of(set.kind).alignment));
}

Compaction PlanCompaction(const ModelSpec& model, const UnitTable& table,
                          const std::vector<bool>& removed, const PruningSpec& pruning) {
  Compaction compaction = {.model = model, .kept = {}};
  std::vector<LayerShape> shapes;
  for (int64_t layer = 0; layer < model.layers; ++layer) shapes.push_back(model.ShapeOf(layer));
  for (const UnitSet& set : table.sets()) {
    const auto begin = removed.begin() + set.first;
    const int64_t live = std::count(begin, begin + set.count, false);
    const int64_t count = AlignedCount(set, live, pruning);
    compaction.kept.push_back(Keep(set, removed, live, count));
    if (set.kind == UnitKind::kStem) {
      compaction.model.norm_width = count < model.width ? model.norm_divisor() : model.norm_width;
      compaction.model.width = count;
      continue;
    }
    LayerShape& shape = shapes[static_cast<size_t>(set.layer)];
    if (set.kind == UnitKind::kFeedForward) {
      shape.feed_forward = count;
    } else {
      shape.heads = shape.heads / shape.kv_heads * count;
      shape.kv_heads = count;
    }
  }
  SetShapes(std::move(shapes), &compaction.model);
  return compaction;
}

KeptCells KeptCellsOf(const Parameter& parameter, const UnitTable& table,
                      const Compaction& compaction) {
  const int64_t rows = parameter.layout.out(), columns = parameter.layout.in();
  const auto found = table.parameters().find(parameter.name);
  if (found == table.parameters().end()) return {All(rows), All(columns)};
  return {CellsOf(found->second.rows, compaction, rows),
          CellsOf(found->second.columns, compaction, columns)};
}

}  // namespace filigree

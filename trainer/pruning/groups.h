// What structured pruning can remove from a model, found from its description.
//
// A unit is the smallest thing that goes as a whole:
//   a key-value head with the query heads that read it (attention, one set a layer),
//   a feed-forward channel (one set a layer),
//   a channel of the residual stream, the stem (one set for the whole model; RMSNorm only).
// A group is a unit's rows and columns in every tensor that it touches. Setting all of them to zero
// removes the unit exactly: each product it enters has another zero factor, so its gradients are
// exactly zero, and with zero moments AdamW leaves it at zero. Nothing else masks a removed unit.
// The stem's channels also need RMSNorm to go on dividing by the original width
// (ModelSpec::norm_width), and LayerNorm, whose mean is over the channels there are, keeps them
// all.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "trainer/spec.h"

namespace filigree {

// "attention", "feed_forward", "stem".
const char* NameOf(UnitKind kind);

// All units of one kind in one place.
struct UnitSet {
  UnitKind kind = UnitKind::kAttention;
  int64_t layer = -1;  // -1: the whole model
  int64_t first = 0;   // units are numbered over all sets; the set's first
  int64_t count = 0;
  int64_t parameters = 0;  // that go with one unit while all others stay
};

// Which units the rows, or the columns, of a matrix belong to: cell i to unit i / extent of the
// set; -1: to none.
struct AxisUnits {
  int set = -1;
  int64_t extent = 1;
  // The cells along this axis are where the unit enters the function linearly: scaling them by z
  // scales its whole effect (o's and down's columns; for the stem, all that writes to it). Saliency
  // by Taylor terms sums over these.
  bool gate = false;
};

// Of one parameter [rows, columns]; a vector is a matrix of one row.
struct ParameterUnits {
  int64_t row_count = 1, column_count = 0;
  AxisUnits rows = {}, columns = {};
};

// The units of a model, and where they lie. Parameters go by name (parameter.h).
class UnitTable {
 public:
  explicit UnitTable(const ModelSpec& model);

  const std::vector<UnitSet>& sets() const { return sets_; }
  int64_t unit_count() const { return sets_.empty() ? 0 : sets_.back().first + sets_.back().count; }
  const std::map<std::string, ParameterUnits>& parameters() const { return parameters_; }

 private:
  int AddSet(UnitKind kind, int64_t layer, int64_t count);
  void Add(const std::string& name, const ParameterUnits& units);
  void AddVocabulary(const ModelSpec& model, const AxisUnits& stem);
  void AddLayer(const ModelSpec& model, int64_t layer, const AxisUnits& stem);

  std::vector<UnitSet> sets_;
  std::map<std::string, ParameterUnits> parameters_;
};

// By set: how many of its units stay (progress.h); what was removed may still be stored.
std::vector<int64_t> LiveCounts(const UnitTable& table, std::span<const int64_t> zero_at);

// By set: the parameters that go with one of its units where `live` units of each set are left.
// Unlike UnitSet::parameters they do not depend on whether removed units are still stored.
std::vector<int64_t> LiveParametersOfUnits(const UnitTable& table, std::span<const int64_t> live);

}  // namespace filigree

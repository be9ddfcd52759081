#include <algorithm>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/matrix.h"
#include "kernels/cpu/parallel.h"

namespace filigree {
namespace {

// Columns whose sums a thread keeps while it goes down the rows.
constexpr int64_t kColumnTile = 64;

struct Sums {
  double gw = 0, gw_squares = 0, w_squares = 0;

  void Add(double w, double g) {
    const double product = g * w;
    gw += product;
    gw_squares += product * product;
    w_squares += w * w;
  }
  void AddTo(double* out) const {
    out[0] += gw;
    out[1] += gw_squares;
    out[2] += w_squares;
  }
};

// The piece of one row, in columns [begin, end).
template <typename Fn>
void ForCells(const CellUnits& units, int64_t count, int64_t row, int64_t begin, int64_t end,
              const Fn& fn) {
  const int64_t row_start = row * units.columns - units.first;
  const int64_t from = std::max<int64_t>(row_start + begin, 0);
  const int64_t to = std::min(row_start + end, count);
  for (int64_t i = from; i < to; ++i) fn(i, i - row_start);
}

template <typename T>
class UnitSummer {
 public:
  explicit UnitSummer(const UnitSumsArgs& args)
      : units_(args.units),
        count_(args.values.size()),
        values_(AsVector<T>(args.values, count_, "values")),
        grads_(args.grads.empty() ? nullptr : AsVector<T>(args.grads, count_, "grads")),
        first_row_(units_.first / units_.columns),
        end_row_(CeilDiv(units_.first + count_, units_.columns)) {}

  void Rows(TensorView sums) const {
    double* out = AsVector<double>(sums, sums.size(), "row_sums");
    const int64_t extent = units_.row_extent, units = sums.size() / 3;
    const int64_t first = first_row_ / extent;
    const int64_t end = std::min(units, CeilDiv(end_row_, extent));
    ParallelFor(end - first, RowGrain(units_.columns * extent), [&](int64_t from, int64_t to) {
      for (int64_t unit = first + from; unit < first + to; ++unit) {
        Sums sum;
        for (int64_t row = unit * extent; row < (unit + 1) * extent; ++row) {
          Add(row, 0, units_.columns, [&](int64_t) { return &sum; });
        }
        sum.AddTo(out + 3 * unit);
      }
    });
  }

  void Columns(TensorView sums) const {
    double* out = AsVector<double>(sums, sums.size(), "column_sums");
    const int64_t extent = units_.column_extent, units = sums.size() / 3;
    const int64_t tile = std::max<int64_t>(1, kColumnTile / extent);  // in units
    ParallelFor(CeilDiv(units, tile), 1, [&](int64_t from, int64_t to) {
      std::vector<Sums> tile_sums(tile);
      for (int64_t t = from; t < to; ++t) {
        std::fill(tile_sums.begin(), tile_sums.end(), Sums());
        const int64_t begin = t * tile, end = std::min(units, begin + tile);
        for (int64_t row = first_row_; row < end_row_; ++row) {
          Add(row, begin * extent, std::min(end * extent, units_.columns),
              [&](int64_t column) { return &tile_sums[column / extent - begin]; });
        }
        for (int64_t unit = begin; unit < end; ++unit) {
          tile_sums[unit - begin].AddTo(out + 3 * unit);
        }
      }
    });
  }

 private:
  template <typename SumOf>
  void Add(int64_t row, int64_t begin, int64_t end, const SumOf& sum_of) const {
    ForCells(units_, count_, row, begin, end, [&](int64_t i, int64_t column) {
      sum_of(column)->Add(values_[i], grads_ ? grads_[i] : 0.0);
    });
  }

  const CellUnits units_;
  const int64_t count_;
  const T* values_;
  const T* grads_;
  const int64_t first_row_, end_row_;
};

// The factor of a unit; 1 where there is none, or none for it.
class Factors {
 public:
  Factors(ConstTensorView factors, int64_t extent)
      : count_(factors.size()),
        extent_(extent),
        data_(factors.empty() ? nullptr : AsVector<float>(factors, count_, "factors")) {}
  float operator()(int64_t cell) const {
    const int64_t unit = cell / extent_;
    return data_ && unit < count_ ? data_[unit] : 1.0f;
  }

 private:
  int64_t count_, extent_;
  const float* data_;
};

template <typename T>
void ScaleUnitsOf(const ScaleUnitsArgs& args) {
  const CellUnits& units = args.units;
  const int64_t count = args.values.size();
  T* values = AsVector<T>(args.values, count, "values");
  const Factors row_factor(args.row_factors, units.row_extent);
  const Factors column_factor(args.column_factors, units.column_extent);
  const int64_t first = units.first / units.columns;
  const int64_t end = CeilDiv(units.first + count, units.columns);
  ParallelFor(end - first, RowGrain(units.columns), [&](int64_t from, int64_t to) {
    for (int64_t row = first + from; row < first + to; ++row) {
      const float factor = row_factor(row);
      ForCells(units, count, row, 0, units.columns, [&](int64_t i, int64_t column) {
        const float scale = factor * column_factor(column);
        values[i] = scale == 0 ? T(0) : values[i] * scale;
      });
    }
  });
}

}  // namespace

void CpuBackend::UnitSums(const UnitSumsArgs& args, Stream&) {
  DispatchFloat(args.values.dtype(), [&](auto t) {
    const UnitSummer<decltype(t)> summer(args);
    if (!args.row_sums.empty()) summer.Rows(args.row_sums);
    if (!args.column_sums.empty()) summer.Columns(args.column_sums);
  });
}

void CpuBackend::ScaleUnits(const ScaleUnitsArgs& args, Stream&) {
  DispatchFloat(args.values.dtype(), [&](auto t) { ScaleUnitsOf<decltype(t)>(args); });
}

}  // namespace filigree

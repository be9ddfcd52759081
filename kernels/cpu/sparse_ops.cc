#include <algorithm>
#include <utility>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_prepared_layout.h"
#include "kernels/cpu/matrix.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/wide_grad.h"
#include "kernels/sparse/stored_runs.h"

namespace filigree {
namespace {

template <typename T>
void ScatterOf(const ScatterStoredArgs& args) {
  const SparseLayout& layout = args.weight->layout();
  const T* values = AsVector<T>(args.values, layout.stored_count(), "values");
  const auto dense = AsMatrix<T>(args.dense, layout.out(), layout.in(), "dense");
  ParallelFor(layout.out(), RowGrain(layout.in()), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* row = dense.row(i);
      if (!args.accumulate) std::fill(row, row + layout.in(), T(0));
      ForEachStoredRun(layout, i, [&](int64_t slot, int64_t column, int64_t count) {
        for (int64_t j = 0; j < count; ++j) row[column + j] += values[slot + j];
      });
    }
  });
}

// Rows past the weight's edge belong to the last block row and hold only padding.
template <typename T>
void GatherOf(const GatherStoredArgs& args) {
  const SparseLayout& layout = args.weight->layout();
  const auto dense = AsMatrix<T>(args.dense, layout.out(), layout.in(), "dense");
  T* values = AsVector<T>(args.values, layout.stored_count(), "values");
  const int64_t padded_rows = layout.grid_rows() * layout.block_out();
  const int64_t width = std::max<int64_t>(layout.row_pitch(), layout.block_in());
  ParallelFor(padded_rows, RowGrain(layout.in()), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      ForEachStoredRun(layout, i, [&](int64_t slot, int64_t column, int64_t count) {
        const int64_t inside = i < layout.out() ? count : 0;
        const T* from = dense.data + i * dense.stride + column;
        for (int64_t j = 0; j < inside; ++j) {
          values[slot + j] = (args.accumulate ? values[slot + j] : T(0)) + from[j];
        }
        if (!args.accumulate) std::fill(values + slot + inside, values + slot + width, T(0));
      });
    }
  });
}

}  // namespace

CpuPreparedLayout::CpuPreparedLayout(SparseLayout layout)
    : PreparedLayout(std::move(layout)),
      transposed(this->layout().kind() == LayoutKind::kBlocked ? this->layout().Transpose()
                                                               : SparseLayout::Transposed{}) {}

size_t CpuPreparedLayout::bytes() const {
  const auto bytes_of = [](const auto& v) { return v.size() * sizeof(v[0]); };
  return bytes_of(layout().row_offsets()) + bytes_of(layout().columns()) +
         bytes_of(transposed.column_offsets) + bytes_of(transposed.rows) +
         bytes_of(transposed.slots);
}

std::unique_ptr<PreparedLayout> CpuBackend::PrepareLayout(const SparseLayout& layout) {
  return std::make_unique<CpuPreparedLayout>(layout);
}

void CpuBackend::ScatterStored(const ScatterStoredArgs& args, Stream&) {
  DispatchFloat(args.dense.dtype(), [&](auto t) { ScatterOf<decltype(t)>(args); });
}
void CpuBackend::GatherStored(const GatherStoredArgs& args, Stream&) {
  const WideGrad values(args.values, ScratchSlot::kWideGrad, args.accumulate);
  GatherStoredArgs wide = args;
  wide.values = values.view();
  DispatchFloat(args.dense.dtype(), [&](auto t) { GatherOf<decltype(t)>(wide); });
}

}  // namespace filigree

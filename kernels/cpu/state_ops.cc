// State as it is held to plain numbers and back, and stored values from layout to layout.
#include <algorithm>
#include <limits>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/matrix.h"
#include "kernels/cpu/parallel.h"

namespace filigree {
namespace {

constexpr int64_t kRange = 1 << 14;  // elements worth a thread
constexpr int64_t kBlocksWorthAThread = kRange / kQuantizationBlock;

// Calls fn(first block, first element, elements) for pieces of `count` values in whole blocks.
template <typename Fn>
void ForBlocks(int64_t count, const Fn& fn) {
  ParallelFor(CeilDiv(count, kQuantizationBlock), kBlocksWorthAThread,
              [&](int64_t first, int64_t last) {
                const int64_t begin = first * kQuantizationBlock;
                fn(first, begin, std::min(last * kQuantizationBlock, count) - begin);
              });
}

// The slot that holds a cell of the weight, kNewCell where none does.
int32_t SlotOf(const SparseLayout& layout, int64_t row, int64_t column) {
  if (layout.kind() == LayoutKind::kDense) {
    return static_cast<int32_t>(row * layout.row_pitch() + column);
  }
  const int64_t height = layout.block_out(), width = layout.block_in();
  const auto columns = layout.columns();
  const auto begin = columns.begin() + layout.row_offsets()[row / height];
  const auto end = columns.begin() + layout.row_offsets()[row / height + 1];
  const auto found = std::lower_bound(begin, end, column / width);
  if (found == end || *found != column / width) return kNewCell;
  const int64_t entry = found - columns.begin();
  return static_cast<int32_t>((entry * height + row % height) * width + column % width);
}

}  // namespace

void CpuBackend::Widen(const WidenArgs& args, Stream&) {
  const int64_t n = args.in.size();
  const BFloat16* in = AsVector<BFloat16>(args.in, n, "in");
  float* out = AsVector<float>(args.out, n, "out");
  ParallelFor(n, kRange, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) out[i] = static_cast<float>(in[i]);
  });
}

void CpuBackend::Quantize(const QuantizeArgs& args, Stream&) {
  const int64_t n = args.in.size();
  const float* in = AsVector<float>(args.in, n, "in");
  uint8_t* codes = AsVector<uint8_t>(args.codes, n, "codes");
  float* scales = AsVector<float>(args.scales, CeilDiv(n, kQuantizationBlock), "scales");
  ForBlocks(n, [&](int64_t block, int64_t begin, int64_t count) {
    QuantizeBlocks(args.map, in + begin, count, codes + begin, scales + block);
  });
}

void CpuBackend::Dequantize(const DequantizeArgs& args, Stream&) {
  const int64_t n = args.out.size();
  const uint8_t* codes = AsVector<uint8_t>(args.codes, n, "codes");
  const float* scales = AsVector<float>(args.scales, CeilDiv(n, kQuantizationBlock), "scales");
  float* out = AsVector<float>(args.out, n, "out");
  ForBlocks(n, [&](int64_t block, int64_t begin, int64_t count) {
    DequantizeBlocks(args.map, codes + begin, scales + block, count, out + begin);
  });
}

void CpuBackend::MapStored(const MapStoredArgs& args, Stream&) {
  const SparseLayout &from = args.from->layout(), &to = args.to->layout();
  for (const SparseLayout* layout : {&from, &to}) {
    CHECK_LE(layout->stored_count(), int64_t{std::numeric_limits<int32_t>::max()});
  }
  const bool kept = !args.rows.empty();
  const int32_t* rows = kept ? AsVector<int32_t>(args.rows, to.out(), "rows") : nullptr;
  const int32_t* columns = kept ? AsVector<int32_t>(args.columns, to.in(), "columns") : nullptr;
  CHECK(kept || (from.out() == to.out() && from.in() == to.in()))
      << "[" << from.out() << ", " << from.in() << "] to [" << to.out() << ", " << to.in() << "]";
  int32_t* slots = AsVector<int32_t>(args.slots, to.stored_count(), "slots");
  const int64_t height = to.block_out();
  const bool dense = to.kind() == LayoutKind::kDense;
  const int64_t width = dense ? to.row_pitch() : to.block_in();
  ParallelFor(to.grid_rows(), RowGrain(to.in() * height), [&](int64_t first, int64_t last) {
    for (int64_t grid_row = first; grid_row < last; ++grid_row) {
      const int64_t begin = dense ? grid_row : to.row_offsets()[grid_row];
      const int64_t end = dense ? grid_row + 1 : to.row_offsets()[grid_row + 1];
      int32_t* next = slots + begin * height * width;
      for (int64_t entry = begin; entry < end; ++entry) {
        const int64_t left = dense ? 0 : to.columns()[entry] * width;
        for (int64_t row = grid_row * height; row < (grid_row + 1) * height; ++row) {
          for (int64_t column = left; column < left + width; ++column) {
            const bool inside = row < to.out() && column < to.in();
            *next++ = !inside ? kPaddingCell
                      : kept  ? SlotOf(from, rows[row], columns[column])
                              : SlotOf(from, row, column);
          }
        }
      }
    }
  });
}

void CpuBackend::TakeStored(const TakeStoredArgs& args, Stream&) {
  const int64_t n = args.to.size(), mapped = args.slots.size();
  const float* from = AsVector<float>(args.from, args.from.size(), "from");
  const int32_t* slots = AsVector<int32_t>(args.slots, mapped, "slots");
  float* to = AsVector<float>(args.to, n, "to");
  CHECK_LE(mapped, n);
  ParallelFor(n, kRange, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int32_t slot = i < mapped ? slots[i] : kPaddingCell;
      to[i] = slot >= 0 ? from[slot] : slot == kNewCell ? args.fresh : 0.0f;
    }
  });
}

void CpuBackend::AddColumns(const AddColumnsArgs& args, Stream&) {
  const int64_t q = args.gone.size(), n = args.rest.size(), rows = args.weight.rows();
  const auto weight = AsMatrix<float>(args.weight, rows, args.weight.cols(), "weight");
  const int32_t* gone = AsVector<int32_t>(args.gone, q, "gone");
  const int32_t* rest = AsVector<int32_t>(args.rest, n, "rest");
  const double* factors = AsVector<double>(args.factors, q * n, "factors");
  ParallelFor(rows, RowGrain(q * n), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      float* cells = weight.row(row);
      for (int64_t k = 0; k < q; ++k) {
        const double value = cells[gone[k]];
        for (int64_t i = 0; i < n; ++i) {
          const double term = value * factors[k * n + i];
          cells[rest[i]] = static_cast<float>(cells[rest[i]] + term);
        }
      }
    }
  });
}

}  // namespace filigree

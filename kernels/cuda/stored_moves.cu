// MapStored, TakeStored: stored values from one layout to another.
//
// MapKernel. Grid: one CTA a row of the target's grid, whose slots it writes in order; a cell's slot
//   in the source is found by bisection of that row's columns, which are a few kilobytes that all
//   threads read. Bytes: 4 a slot, and the columns.
// TakeKernel: an element a thread, strided. Bytes: 12 an element, where rows keep most of theirs.
#include <algorithm>
#include <limits>

#include "kernels/base/math.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/device_rows.h"
#include "kernels/cuda/layout_cells.cuh"

namespace filigree {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxCtas = 132 * 16;

__global__ void __launch_bounds__(kThreads)
    MapKernel(Cells from, Cells to, const int32_t* rows, const int32_t* columns, int32_t* slots) {
  const int64_t grid_row = blockIdx.x;
  const bool dense = to.row_offsets == nullptr;
  const int64_t begin = dense ? grid_row : int64_t{to.row_offsets[grid_row]};
  const int64_t end = dense ? grid_row + 1 : int64_t{to.row_offsets[grid_row + 1]};
  const auto width = static_cast<uint32_t>(to.width);
  const uint32_t area = to.height * width;
  const auto count = static_cast<uint32_t>((end - begin) * area);
  for (uint32_t i = threadIdx.x; i < count; i += kThreads) {
    const uint32_t entry = i / area, inside = i % area;
    const int64_t left = dense ? 0 : to.column(static_cast<uint32_t>(begin) + entry) * width;
    const int64_t row = grid_row * to.height + inside / width, column = left + inside % width;
    int32_t slot = kPaddingCell;
    if (row < to.out && column < to.in) {
      slot = rows == nullptr ? from.SlotOf(row, column) : from.SlotOf(rows[row], columns[column]);
    }
    slots[begin * area + i] = slot;
  }
}

__global__ void __launch_bounds__(kThreads)
    TakeKernel(const float* from, const int32_t* slots, int64_t mapped, float* to, int64_t count,
               float fresh) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    const int32_t slot = i < mapped ? slots[i] : kPaddingCell;
    to[i] = slot >= 0 ? from[slot] : slot == kNewCell ? fresh : 0.0f;
  }
}

}  // namespace

void CudaBackend::MapStored(const MapStoredArgs& args, Stream& stream) {
  for (const PreparedLayout* layout : {args.from, args.to}) {
    CHECK_LE(layout->layout().stored_count(), int64_t{std::numeric_limits<int32_t>::max()});
  }
  const Cells from = CellsOf(args.from), to = CellsOf(args.to);
  const bool kept = !args.rows.empty();
  CHECK(kept || (from.out == to.out && from.in == to.in))
      << "[" << from.out << ", " << from.in << "] to [" << to.out << ", " << to.in << "]";
  const int64_t count = args.to->layout().stored_count();
  if (count == 0) return;
  const int32_t* rows = kept ? AsElements<int32_t>(args.rows, to.out, "rows") : nullptr;
  const int32_t* columns = kept ? AsElements<int32_t>(args.columns, to.in, "columns") : nullptr;
  const auto grid = static_cast<unsigned>(args.to->layout().grid_rows());
  MapKernel<<<grid, kThreads, 0, NativeStream(stream)>>>(
      from, to, rows, columns, AsElements<int32_t>(args.slots, count, "slots"));
  CUDA_CHECK(cudaGetLastError());
}

void CudaBackend::TakeStored(const TakeStoredArgs& args, Stream& stream) {
  const int64_t count = args.to.size(), mapped = args.slots.size();
  CHECK_LE(mapped, count);
  if (count == 0) return;
  const auto grid =
      static_cast<unsigned>(std::min(CeilDiv(count, int64_t{kThreads}), kMaxCtas));
  TakeKernel<<<grid, kThreads, 0, NativeStream(stream)>>>(
      AsElements<float>(args.from, args.from.size(), "from"),
      AsElements<int32_t>(args.slots, mapped, "slots"), mapped,
      AsElements<float>(args.to, count, "to"), count, args.fresh);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace filigree

// DrawStored: random numbers of stored cells, in the host's bits.
//
// An element a thread, strided; a cell's row is found by bisection of the rows' offsets, which are a
// few kilobytes. About 150 instructions in FP64 an element: of a card with full FP64 units the time
// is that of the stores, others take some ten times longer, once a start.
#include <algorithm>

#include "kernels/base/exact_random.h"
#include "kernels/base/math.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/device_rows.h"
#include "kernels/cuda/layout_cells.cuh"

namespace filigree {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxCtas = 132 * 16;

template <DrawKind kKind>
__global__ void __launch_bounds__(kThreads)
    DrawKernel(Cells cells, CellDraw draw, int64_t first, int64_t stored, float* out,
               int64_t count) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    const int64_t cell = first + i < stored ? cells.CellOf(first + i) : -1;
    const exact::Words words = exact::Philox(draw.seed, draw.stream, static_cast<uint64_t>(cell));
    const double number =
        kKind == DrawKind::kNormal ? exact::Normal(words) : exact::Uniform(words);
    out[i] = cell < 0 ? 0.0f : __double2float_rn(exact::Multiply(draw.scale, number));
  }
}

}  // namespace

void CudaBackend::DrawStored(const DrawStoredArgs& args, Stream& stream) {
  const int64_t count = args.out.size();
  if (count == 0) return;
  const auto grid =
      static_cast<unsigned>(std::min(CeilDiv(count, int64_t{kThreads}), kMaxCtas));
  const auto kernel = args.draw.kind == DrawKind::kNormal
                          ? DrawKernel<DrawKind::kNormal>
                          : DrawKernel<DrawKind::kUniform>;
  kernel<<<grid, kThreads, 0, NativeStream(stream)>>>(
      CellsOf(args.layout), args.draw, args.first, args.layout->layout().stored_count(),
      AsElements<float>(args.out, count, "out"), count);
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace filigree

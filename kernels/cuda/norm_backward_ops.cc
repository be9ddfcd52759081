// The norms' backward pass: one kernel for dx and partial sums over rows, one for their total. Both
// orders of summing are fixed by the shape and the device.
#include <algorithm>

#include "kernels/cuda/column_partials.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/norm_backward.h"

namespace filigree {
namespace {

template <typename Args>
NormBackwardParams ParamsOf(const Args& args) {
  const int64_t rows = args.x.rows(), cols = args.x.cols();
  NormBackwardParams p = {};
  p.x = AsRows<__nv_bfloat16>(args.x, rows, cols, "x");
  p.dy = AsRows<__nv_bfloat16>(args.dy, rows, cols, "dy");
  p.dx = AsRows<__nv_bfloat16>(args.dx, rows, cols, "dx");
  p.gain = AsElements<__nv_bfloat16>(args.gain, cols, "gain");
  p.rstd = AsElements<float>(args.rstd, rows, "rstd");
  CHECK_EQ(args.dgain.size(), cols);
  p.rows = rows;
  p.cols = static_cast<int>(cols);
  p.divisor = static_cast<float>(cols);
  return p;
}

void Launch(const NormBackwardParams& p, bool vectors, int partial_rows, cudaStream_t stream) {
  if (vectors && p.cols <= kMaxNormBackwardCols) {
    LaunchNormBackward(p, partial_rows, stream);
  } else {
    LaunchAnyNormBackward(p, partial_rows, stream);
  }
}

// As many blocks as run at once (1024 threads of 8 columns on a multiprocessor, at most four
// blocks), no more than there are rows.
int PartialRows(const CudaDevice& device, const NormBackwardParams& p) {
  const int64_t blocks = std::clamp(kMaxNormBackwardCols / p.cols, 1, 4);
  return static_cast<int>(std::min(p.rows, blocks * device.multiprocessors()));
}

}  // namespace

void CudaBackend::RmsNormBackward(const RmsNormBackwardArgs& args, Stream& stream) {
  NormBackwardParams p = ParamsOf(args);
  if (args.divisor > 0) p.divisor = static_cast<float>(args.divisor);
  if (args.x.empty()) return;
  const int partial_rows = PartialRows(device_, p);
  p.partials = reinterpret_cast<float*>(Workspace(sizeof(float) * partial_rows * p.cols));
  Launch(p, TakeVectors(args.x, args.dy, args.dx, args.gain), partial_rows, NativeStream(stream));
  AddColumnPartials(p.partials, partial_rows, p.cols, args.dgain, NativeStream(stream));
}

void CudaBackend::LayerNormBackward(const LayerNormBackwardArgs& args, Stream& stream) {
  NormBackwardParams p = ParamsOf(args);
  p.mean = AsElements<float>(args.mean, p.rows, "mean");
  CHECK_EQ(args.dbias.size(), p.cols);
  if (args.x.empty()) return;
  const int partial_rows = PartialRows(device_, p);
  const int64_t width = 2 * p.cols;
  p.partials = reinterpret_cast<float*>(Workspace(sizeof(float) * partial_rows * width));
  Launch(p, TakeVectors(args.x, args.dy, args.dx, args.gain), partial_rows, NativeStream(stream));
  AddColumnPartials(p.partials, partial_rows, width, args.dgain, NativeStream(stream));
  AddColumnPartials(p.partials + p.cols, partial_rows, width, args.dbias, NativeStream(stream));
}

}  // namespace filigree

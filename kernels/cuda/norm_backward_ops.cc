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
  CHECK(args.dx_sums.empty() || args.dx_sums.size() == cols) << args.dx_sums.size();
  p.rows = rows;
  p.cols = static_cast<int>(cols);
  p.divisor = static_cast<float>(cols);
  return p;
}

// As many blocks as run at once (1024 threads of 8 columns on a multiprocessor, at most four
// blocks), no more than there are rows.
int PartialRows(const CudaDevice& device, const NormBackwardParams& p) {
  const int64_t blocks = std::clamp(kMaxNormBackwardCols / p.cols, 1, 4);
  return static_cast<int>(std::min(p.rows, blocks * device.multiprocessors()));
}

// `dbias` is empty in RMSNorm, where `p` has no mean.
template <typename Args>
void Run(CudaBackend& backend, const Args& args, TensorView dbias, NormBackwardParams p,
         Stream& stream) {
  const cudaStream_t native = NativeStream(stream);
  const bool in_registers =
      TakeVectors(args.x, args.dy, args.dx, args.gain) && p.cols <= kMaxNormBackwardCols;
  p.sums_dx = in_registers && !args.dx_sums.empty();
  const int rows = PartialRows(backend.cuda_device(), p);
  const size_t count = size_t{1} * rows * p.partial_vectors() * p.cols;
  p.partials = reinterpret_cast<float*>(backend.Workspace(sizeof(float) * count));
  if (in_registers) {
    LaunchNormBackward(p, rows, native);
  } else {
    LaunchAnyNormBackward(p, rows, native);
  }
  ColumnTotal totals[kMaxColumnTotals] = {{args.dgain, args.accumulate}};
  int vectors = 1;
  if (!dbias.empty()) totals[vectors++] = {dbias, args.accumulate};
  if (p.sums_dx) totals[vectors++] = {args.dx_sums, args.accumulate_dx_sums};
  CHECK_EQ(vectors, p.partial_vectors());
  SumColumnPartials(p.partials, rows, {totals, static_cast<size_t>(vectors)}, native);
  if (!args.dx_sums.empty() && !p.sums_dx) {
    backend.ColumnSum({.in = args.dx, .out = args.dx_sums, .accumulate = args.accumulate_dx_sums},
                      stream);
  }
}

// Gradients of no rows: zero where they are not added.
void ZeroUnlessAdded(Device& device, bool accumulate, TensorView grads, Stream& stream) {
  if (!accumulate && !grads.empty()) device.ZeroAsync(grads, stream);
}

}  // namespace

void CudaBackend::RmsNormBackward(const RmsNormBackwardArgs& args, Stream& stream) {
  NormBackwardParams p = ParamsOf(args);
  if (args.divisor > 0) p.divisor = static_cast<float>(args.divisor);
  if (!args.x.empty()) return Run(*this, args, {}, p, stream);
  ZeroUnlessAdded(device_, args.accumulate, args.dgain, stream);
  ZeroUnlessAdded(device_, args.accumulate_dx_sums, args.dx_sums, stream);
}

void CudaBackend::LayerNormBackward(const LayerNormBackwardArgs& args, Stream& stream) {
  NormBackwardParams p = ParamsOf(args);
  p.mean = AsElements<float>(args.mean, p.rows, "mean");
  CHECK_EQ(args.dbias.size(), p.cols);
  if (!args.x.empty()) return Run(*this, args, args.dbias, p, stream);
  ZeroUnlessAdded(device_, args.accumulate, args.dgain, stream);
  ZeroUnlessAdded(device_, args.accumulate, args.dbias, stream);
  ZeroUnlessAdded(device_, args.accumulate_dx_sums, args.dx_sums, stream);
}

}  // namespace filigree

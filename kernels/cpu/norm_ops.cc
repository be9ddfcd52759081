#include <algorithm>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/matrix.h"
#include "kernels/cpu/row_sums.h"
#include "kernels/cpu/simd_kernels.h"
#include "kernels/cpu/wide_grad.h"

namespace filigree {
namespace {

// What a row's sum is divided by.
template <typename Args>
int64_t DivisorOf(const Args& args) {
  return args.divisor > 0 ? args.divisor : args.x.cols();
}

template <typename T>
void RmsNormOf(const RmsNormArgs& args) {
  const int64_t rows = args.x.rows(), cols = args.x.cols();
  const auto x = AsMatrix<T>(args.x, rows, cols, "x");
  const auto y = AsMatrix<T>(args.y, rows, cols, "y");
  const T* gain = AsVector<T>(args.gain, cols, "gain");
  T* rstd = AsVector<T>(args.rstd, rows, "rstd");
  const T divisor = DivisorOf(args);
  ParallelFor(rows, RowGrain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      Simd<T>().rms_norm(x.row(i), gain, T(args.epsilon), divisor, y.row(i), rstd + i, cols);
    }
  });
}

template <typename T>
void RmsNormBackwardOf(const RmsNormBackwardArgs& args) {
  const int64_t rows = args.x.rows(), cols = args.x.cols();
  const auto x = AsMatrix<T>(args.x, rows, cols, "x");
  const auto dy = AsMatrix<T>(args.dy, rows, cols, "dy");
  const auto dx = AsMatrix<T>(args.dx, rows, cols, "dx");
  const T* gain = AsVector<T>(args.gain, cols, "gain");
  const T* rstd = AsVector<T>(args.rstd, rows, "rstd");
  const T divisor = DivisorOf(args);
  SumOverRows(rows, cols, AsVector<T>(args.dgain, cols, "dgain"), args.accumulate,
              [&](int64_t begin, int64_t end, T* partial) {
                for (int64_t i = begin; i < end; ++i) {
                  Simd<T>().rms_norm_backward(x.row(i), dy.row(i), gain, rstd[i], divisor,
                                              dx.row(i), partial, cols);
                }
              });
}

template <typename T>
void LayerNormOf(const LayerNormArgs& args) {
  const int64_t rows = args.x.rows(), cols = args.x.cols();
  const auto x = AsMatrix<T>(args.x, rows, cols, "x");
  const auto y = AsMatrix<T>(args.y, rows, cols, "y");
  const T* gain = AsVector<T>(args.gain, cols, "gain");
  const T* bias = AsVector<T>(args.bias, cols, "bias");
  T* mean = AsVector<T>(args.mean, rows, "mean");
  T* rstd = AsVector<T>(args.rstd, rows, "rstd");
  ParallelFor(rows, RowGrain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      Simd<T>().layer_norm(x.row(i), gain, bias, T(args.epsilon), y.row(i), mean + i, rstd + i,
                           cols);
    }
  });
}

template <typename T>
void LayerNormBackwardOf(const LayerNormBackwardArgs& args) {
  const int64_t rows = args.x.rows(), cols = args.x.cols();
  const auto x = AsMatrix<T>(args.x, rows, cols, "x");
  const auto dy = AsMatrix<T>(args.dy, rows, cols, "dy");
  const auto dx = AsMatrix<T>(args.dx, rows, cols, "dx");
  const T* gain = AsVector<T>(args.gain, cols, "gain");
  const T* mean = AsVector<T>(args.mean, rows, "mean");
  const T* rstd = AsVector<T>(args.rstd, rows, "rstd");
  T* dgain = AsVector<T>(args.dgain, cols, "dgain");
  T* dbias = AsVector<T>(args.dbias, cols, "dbias");
  // One sum of twice the width holds both gradients.
  T* sums = Scratch<T>(ScratchSlot::kMoreSums, 2 * cols);
  SumOverRows(rows, 2 * cols, sums, /*accumulate=*/false,
              [&](int64_t begin, int64_t end, T* partial) {
                for (int64_t i = begin; i < end; ++i) {
                  Simd<T>().layer_norm_backward(x.row(i), dy.row(i), gain, mean[i], rstd[i],
                                                dx.row(i), partial, partial + cols, cols);
                }
              });
  if (!args.accumulate) {
    std::copy(sums, sums + cols, dgain);
    std::copy(sums + cols, sums + 2 * cols, dbias);
    return;
  }
  Simd<T>().add(dgain, sums, dgain, cols);
  Simd<T>().add(dbias, sums + cols, dbias, cols);
}

template <typename Args>
void SumOfInputGrads(const Args& args, CpuBackend& backend, Stream& stream) {
  if (args.dx_sums.empty()) return;
  backend.ColumnSum({.in = args.dx, .out = args.dx_sums, .accumulate = args.accumulate_dx_sums},
                    stream);
}

}  // namespace

void CpuBackend::RmsNorm(const RmsNormArgs& args, Stream&) {
  DispatchFloat(args.x.dtype(), [&](auto t) { RmsNormOf<decltype(t)>(args); });
}
void CpuBackend::RmsNormBackward(const RmsNormBackwardArgs& args, Stream& stream) {
  {
    const WideGrad dgain(args.dgain, ScratchSlot::kWideGrad, args.accumulate);
    RmsNormBackwardArgs wide = args;
    wide.dgain = dgain.view();
    DispatchFloat(args.x.dtype(), [&](auto t) { RmsNormBackwardOf<decltype(t)>(wide); });
  }
  SumOfInputGrads(args, *this, stream);
}
void CpuBackend::LayerNorm(const LayerNormArgs& args, Stream&) {
  DispatchFloat(args.x.dtype(), [&](auto t) { LayerNormOf<decltype(t)>(args); });
}
void CpuBackend::LayerNormBackward(const LayerNormBackwardArgs& args, Stream& stream) {
  {
    const WideGrad dgain(args.dgain, ScratchSlot::kWideGrad, args.accumulate);
    const WideGrad dbias(args.dbias, ScratchSlot::kMoreWideGrad, args.accumulate);
    LayerNormBackwardArgs wide = args;
    wide.dgain = dgain.view();
    wide.dbias = dbias.view();
    DispatchFloat(args.x.dtype(), [&](auto t) { LayerNormBackwardOf<decltype(t)>(wide); });
  }
  SumOfInputGrads(args, *this, stream);
}

}  // namespace filigree

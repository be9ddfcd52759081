#include <algorithm>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/matrix.h"
#include "kernels/cpu/row_sums.h"
#include "kernels/cpu/simd_kernels.h"

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
  SumOverRows(rows, cols, AsVector<T>(args.dgain, cols, "dgain"),
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
  std::fill(sums, sums + 2 * cols, T(0));
  SumOverRows(rows, 2 * cols, sums, [&](int64_t begin, int64_t end, T* partial) {
    for (int64_t i = begin; i < end; ++i) {
      Simd<T>().layer_norm_backward(x.row(i), dy.row(i), gain, mean[i], rstd[i], dx.row(i), partial,
                                    partial + cols, cols);
    }
  });
  Simd<T>().add(dgain, sums, dgain, cols);
  Simd<T>().add(dbias, sums + cols, dbias, cols);
}

// The arguments whose x is the sum of x and the residual, once that is taken.
template <typename Args>
Args Summed(const Args& args, CpuBackend& backend, Stream& stream) {
  if (args.residual.empty()) return args;
  backend.Add({.a = args.x, .b = args.residual, .out = args.sum}, stream);
  Args summed = args;
  summed.x = args.sum;
  return summed;
}

}  // namespace

void CpuBackend::RmsNorm(const RmsNormArgs& args, Stream& stream) {
  const RmsNormArgs summed = Summed(args, *this, stream);
  DispatchFloat(args.x.dtype(), [&](auto t) { RmsNormOf<decltype(t)>(summed); });
}
void CpuBackend::RmsNormBackward(const RmsNormBackwardArgs& args, Stream&) {
  DispatchFloat(args.x.dtype(), [&](auto t) { RmsNormBackwardOf<decltype(t)>(args); });
}
void CpuBackend::LayerNorm(const LayerNormArgs& args, Stream& stream) {
  const LayerNormArgs summed = Summed(args, *this, stream);
  DispatchFloat(args.x.dtype(), [&](auto t) { LayerNormOf<decltype(t)>(summed); });
}
void CpuBackend::LayerNormBackward(const LayerNormBackwardArgs& args, Stream&) {
  DispatchFloat(args.x.dtype(), [&](auto t) { LayerNormBackwardOf<decltype(t)>(args); });
}

}  // namespace filigree

#include <algorithm>

#include "kernels/base/gelu_code.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/matrix.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/product_epilogue.h"
#include "kernels/cpu/row_sums.h"
#include "kernels/cpu/simd_kernels.h"
#include "kernels/cpu/wide_grad.h"
#include "kernels/matmul_batch.h"

namespace filigree {
namespace {

// Multiplications worth a thread of their own.
constexpr int64_t kProductGrain = 1 << 20;

template <typename T>
void MatMulOf(const MatMulArgs& args, TensorView result) {
  const int64_t m = result.rows(), n = result.cols();
  const int64_t k = args.transpose_a ? args.a.rows() : args.a.cols();
  const auto a = args.transpose_a ? AsMatrix<T>(args.a, k, m, "a") : AsMatrix<T>(args.a, m, k, "a");
  const auto b = args.transpose_b ? AsMatrix<T>(args.b, n, k, "b") : AsMatrix<T>(args.b, k, n, "b");
  const auto out = AsMatrix<T>(result, m, n, "out");
  const T* bias = args.bias.empty() ? nullptr : AsVector<T>(args.bias, n, "bias");
  const auto& simd = Simd<T>();

  // The rows [i0, i1) and columns [j0, j1) of the product.
  const auto multiply = [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
    const bool keep = args.accumulate || bias != nullptr;
    for (int64_t i = i0; i < i1 && (bias != nullptr || k == 0); ++i) {
      T* row = out.row(i);
      if (!args.accumulate) std::fill(row + j0, row + j1, T(0));
      if (bias != nullptr) simd.add(row + j0, bias + j0, row + j0, j1 - j0);
    }
    if (k == 0) return;
    Gemm(args.transpose_a, args.transpose_b, i1 - i0, j1 - j0, k, T(args.scale),
         args.transpose_a ? a.data + i0 : a.row(i0), a.stride,
         args.transpose_b ? b.row(j0) : b.data + j0, b.stride, keep ? T(1) : T(0), out.row(i0) + j0,
         out.stride);
  };
  if (m == 0 || n == 0) return;
  const int64_t depth = std::max<int64_t>(k, 1);
  if (m >= n) {
    ParallelFor(m, CeilDiv(kProductGrain, n * depth),
                [&](int64_t begin, int64_t end) { multiply(begin, end, 0, n); });
  } else {
    ParallelFor(n, CeilDiv(kProductGrain, m * depth),
                [&](int64_t begin, int64_t end) { multiply(0, m, begin, end); });
  }
}

// Calls fn(row) for all rows, spread over threads.
template <typename Fn>
void ForEachRow(int64_t rows, int64_t cols, const Fn& fn) {
  ParallelFor(rows, RowGrain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) fn(i);
  });
}

template <typename T>
void ColumnSumOf(const ColumnSumArgs& args) {
  const int64_t rows = args.in.rows(), cols = args.in.cols();
  const auto in = AsMatrix<T>(args.in, rows, cols, "in");
  const auto& simd = Simd<T>();
  SumOverRows(rows, cols, AsVector<T>(args.out, cols, "out"), args.accumulate,
              [&](int64_t begin, int64_t end, T* partial) {
                for (int64_t i = begin; i < end; ++i) simd.add(partial, in.row(i), partial, cols);
              });
}

template <typename T>
void SwiGluOf(const SwiGluArgs& args) {
  const int64_t rows = args.y.rows(), cols = args.y.cols();
  const auto gate = AsMatrix<T>(args.gate, rows, cols, "gate");
  const auto y = AsMatrix<T>(args.y, rows, cols, "y");
  if (args.up.empty()) {
    ForEachRow(rows, cols, [&](int64_t i) { Simd<T>().silu(gate.row(i), y.row(i), cols); });
    return;
  }
  const auto up = AsMatrix<T>(args.up, rows, cols, "up");
  if (args.linear) {
    ForEachRow(rows, cols, [&](int64_t i) {
      for (int64_t j = 0; j < cols; ++j) y.row(i)[j] = gate.row(i)[j] * up.row(i)[j];
    });
    return;
  }
  ForEachRow(rows, cols,
             [&](int64_t i) { Simd<T>().swiglu(gate.row(i), up.row(i), y.row(i), cols); });
}

template <typename T>
void SwiGluBackwardOf(const SwiGluBackwardArgs& args) {
  const int64_t rows = args.dy.rows(), cols = args.dy.cols();
  const auto gate = AsMatrix<T>(args.gate, rows, cols, "gate");
  const auto dy = AsMatrix<T>(args.dy, rows, cols, "dy");
  const auto dgate = AsMatrix<T>(args.dgate, rows, cols, "dgate");
  if (args.up.empty()) {
    ForEachRow(rows, cols, [&](int64_t i) {
      Simd<T>().silu_backward(gate.row(i), dy.row(i), dgate.row(i), cols);
    });
    return;
  }
  const auto up = AsMatrix<T>(args.up, rows, cols, "up");
  const auto dup = AsMatrix<T>(args.dup, rows, cols, "dup");
  if (args.linear) {
    ForEachRow(rows, cols, [&](int64_t i) {
      for (int64_t j = 0; j < cols; ++j) {
        const T g = gate.row(i)[j], u = up.row(i)[j], d = dy.row(i)[j];
        dgate.row(i)[j] = d * u;
        dup.row(i)[j] = d * g;
      }
    });
    return;
  }
  ForEachRow(rows, cols, [&](int64_t i) {
    Simd<T>().swiglu_backward(gate.row(i), up.row(i), dy.row(i), dgate.row(i), dup.row(i), cols);
  });
}

// The codes of gelu' in a row.
template <typename T>
void EncodeRow(const T* x, uint8_t* codes, int64_t cols) {
  constexpr int64_t kPiece = 128;
  T ones[kPiece], derivative[kPiece];
  std::fill_n(ones, kPiece, T(1));
  for (int64_t begin = 0; begin < cols; begin += kPiece) {
    const int64_t count = std::min(kPiece, cols - begin);
    Simd<T>().gelu_backward(x + begin, ones, derivative, count);
    std::transform(derivative, derivative + count, codes + begin, EncodeGeluDerivative);
  }
}

template <typename T>
void GeluOf(const GeluArgs& args) {
  const int64_t rows = args.y.rows(), cols = args.y.cols();
  const auto x = AsMatrix<T>(args.x, rows, cols, "x");
  const auto y = AsMatrix<T>(args.y, rows, cols, "y");
  if (!args.codes.empty()) {
    const auto codes = AsMatrix<uint8_t>(args.codes, rows, cols, "codes");
    ForEachRow(rows, cols, [&](int64_t i) { EncodeRow<T>(x.row(i), codes.row(i), cols); });
  }
  ForEachRow(rows, cols, [&](int64_t i) { Simd<T>().gelu(x.row(i), y.row(i), cols); });
}

template <typename T>
void GeluBackwardOf(const GeluBackwardArgs& args) {
  const int64_t rows = args.dy.rows(), cols = args.dy.cols();
  const auto dy = AsMatrix<T>(args.dy, rows, cols, "dy");
  const auto dx = AsMatrix<T>(args.dx, rows, cols, "dx");
  if (args.x.dtype() == DType::kU8) {
    const auto codes = AsMatrix<uint8_t>(args.x, rows, cols, "codes");
    ForEachRow(rows, cols, [&](int64_t i) {
      for (int64_t j = 0; j < cols; ++j) {
        dx.row(i)[j] = dy.row(i)[j] * static_cast<T>(DecodeGeluDerivative(codes.row(i)[j]));
      }
    });
    return;
  }
  const auto x = AsMatrix<T>(args.x, rows, cols, "x");
  ForEachRow(rows, cols,
             [&](int64_t i) { Simd<T>().gelu_backward(x.row(i), dy.row(i), dx.row(i), cols); });
}

template <typename T>
void AddOf(const AddArgs& args) {
  const int64_t rows = args.out.rows(), cols = args.out.cols();
  const auto a = AsMatrix<T>(args.a, rows, cols, "a");
  const auto b = AsMatrix<T>(args.b, rows, cols, "b");
  const auto out = AsMatrix<T>(args.out, rows, cols, "out");
  ForEachRow(rows, cols, [&](int64_t i) { Simd<T>().add(a.row(i), b.row(i), out.row(i), cols); });
}

}  // namespace

void CpuBackend::MatMul(const MatMulArgs& args, Stream& stream) {
  if (args.batch.count > 1) {
    return ForEachProduct(args, [&](const MatMulArgs& one) { MatMul(one, stream); });
  }
  const WideGrad wide(args.epilogue.ResultIn(args.out), ScratchSlot::kWideGrad,
                      args.accumulate);
  const TensorView result = wide.view();
  DispatchFloat(result.dtype(), [&](auto t) { MatMulOf<decltype(t)>(args, result); });
  FinishProduct(*this, args.out, args.epilogue, stream);
}
void CpuBackend::ColumnSum(const ColumnSumArgs& args, Stream&) {
  const WideGrad out(args.out, ScratchSlot::kWideGrad, args.accumulate);
  const ColumnSumArgs wide = {.in = args.in, .out = out.view(), .accumulate = args.accumulate};
  DispatchFloat(args.in.dtype(), [&](auto t) { ColumnSumOf<decltype(t)>(wide); });
}
void CpuBackend::SwiGlu(const SwiGluArgs& args, Stream&) {
  DispatchFloat(args.y.dtype(), [&](auto t) { SwiGluOf<decltype(t)>(args); });
}
void CpuBackend::SwiGluBackward(const SwiGluBackwardArgs& args, Stream&) {
  DispatchFloat(args.dy.dtype(), [&](auto t) { SwiGluBackwardOf<decltype(t)>(args); });
}
void CpuBackend::Gelu(const GeluArgs& args, Stream&) {
  DispatchFloat(args.y.dtype(), [&](auto t) { GeluOf<decltype(t)>(args); });
}
void CpuBackend::GeluBackward(const GeluBackwardArgs& args, Stream&) {
  DispatchFloat(args.dy.dtype(), [&](auto t) { GeluBackwardOf<decltype(t)>(args); });
}
void CpuBackend::Add(const AddArgs& args, Stream&) {
  DispatchFloat(args.out.dtype(), [&](auto t) { AddOf<decltype(t)>(args); });
}

}  // namespace filigree

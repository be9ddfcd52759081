// Bias and residual on a stored product; the activations are operations of their own.
#include <algorithm>

#include "kernels/base/math.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/device_rows.h"
#include "kernels/cuda/product_finish.h"
#include "kernels/cuda/vectors.cuh"
#include "kernels/gelu_epilogue.h"
#include "kernels/swiglu_epilogue.h"

namespace filigree {
namespace {

constexpr int kThreads = 256;

// out = result + bias + residual; bias and residual may be null. Grid: x over the vectors of a row,
// y over rows, strided. Every element belongs to one thread, so out may be result or residual.
template <typename From, typename T, int kVec>
__global__ void __launch_bounds__(kThreads)
    AddTermsKernel(Rows<const From> result, const bf16* bias, Rows<const T> residual, Rows<T> out,
                   int64_t rows, int64_t cols) {
  const int64_t col = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kVec;
  if (col >= cols) return;
  float shift[kVec] = {};
  if (bias != nullptr) LoadValues(bias + col, shift);
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    float sum[kVec];
    LoadValues(result.row(row) + col, sum);
#pragma unroll
    for (int i = 0; i < kVec; ++i) sum[i] += shift[i];
    if (residual.data != nullptr) {
      float more[kVec];
      LoadValues(residual.row(row) + col, more);
#pragma unroll
      for (int i = 0; i < kVec; ++i) sum[i] += more[i];
    }
    StoreValues(out.row(row) + col, sum);
  }
}

template <typename From, typename T>
void AddTerms(ConstTensorView result, ConstTensorView bias, ConstTensorView residual,
              TensorView out, cudaStream_t stream) {
  const int64_t rows = out.rows(), cols = out.cols();
  const auto from = AsRows<From>(result, rows, cols, "result");
  const auto to = AsRows<T>(out, rows, cols, "out");
  const bf16* shift = bias.empty() ? nullptr : AsElements<bf16>(bias, cols, "bias");
  Rows<const T> more;
  if (!residual.empty()) more = AsRows<T>(residual, rows, cols, "residual");
  const bool vectors = TakeVectors(result, bias, residual, out);
  const int64_t width = vectors ? 8 : 1;
  const dim3 grid(static_cast<unsigned>(CeilDiv(cols, kThreads * width)),
                  static_cast<unsigned>(std::min<int64_t>(rows, 4096)));
  if (vectors) {
    AddTermsKernel<From, T, 8><<<grid, kThreads, 0, stream>>>(from, shift, more, to, rows, cols);
  } else {
    AddTermsKernel<From, T, 1><<<grid, kThreads, 0, stream>>>(from, shift, more, to, rows, cols);
  }
  CUDA_CHECK(cudaGetLastError());
}

void CheckShape(ConstTensorView view, ConstTensorView out, const char* name) {
  if (view.empty()) return;
  CHECK(view.rows() == out.rows() && view.cols() == out.cols())
      << name << " is [" << view.rows() << ", " << view.cols() << "], the product [" << out.rows()
      << ", " << out.cols() << "]";
}

}  // namespace

void CheckFinish(ConstTensorView out, ConstTensorView bias, const ProductEpilogue& epilogue) {
  CHECK(bias.empty() || bias.size() == out.cols()) << bias.size() << " vs " << out.cols();
  CHECK(bias.empty() || bias.dtype() == DType::kBF16) << NameOf(bias.dtype());
  CheckShape(epilogue.residual, out, "residual");
  CheckShape(epilogue.pre_activation, out, "pre_activation");
  CheckShape(epilogue.gelu_input, out, "gelu_input");
  CHECK_EQ(epilogue.swiglu.empty(), epilogue.swiglu.up.empty());
  CHECK_EQ(epilogue.swiglu.empty(), epilogue.swiglu.dup.empty());
  CheckShape(epilogue.swiglu.gate, out, "gate");
  CheckShape(epilogue.swiglu.up, out, "up");
  CheckShape(epilogue.swiglu.dup, out, "dup");
  const TensorView y = epilogue.swiglu_output.y;
  CHECK(y.empty() || (y.rows() == out.rows() && 2 * y.cols() == out.cols()))
      << "SwiGLU's output is [" << y.rows() << ", " << y.cols() << "], the product [" << out.rows()
      << ", " << out.cols() << "]";
  CHECK(epilogue.column_sums.empty() || epilogue.column_sums.size() == out.cols())
      << epilogue.column_sums.size() << " sums of " << out.cols() << " columns";
}

void SumColumns(CudaBackend& backend, ConstTensorView out, const ProductEpilogue& epilogue,
                Stream& stream) {
  if (epilogue.column_sums.empty()) return;
  backend.ColumnSum(
      {.in = out, .out = epilogue.column_sums, .accumulate = epilogue.accumulate_sums}, stream);
}

void FinishProduct(CudaBackend& backend, ConstTensorView result, TensorView out,
                   ConstTensorView bias, const ProductEpilogue& epilogue, Stream& stream) {
  const TensorView sum = epilogue.ResultIn(out);
  const bool elsewhere = result.data() != sum.data();
  if (elsewhere || !bias.empty() || !epilogue.residual.empty()) {
    if (out.dtype() == DType::kF32) {
      AddTerms<float, float>(result, bias, epilogue.residual, sum, NativeStream(stream));
    } else if (result.dtype() == DType::kF32) {
      AddTerms<float, bf16>(result, bias, epilogue.residual, sum, NativeStream(stream));
    } else {
      AddTerms<bf16, bf16>(result, bias, epilogue.residual, sum, NativeStream(stream));
    }
  }
  ApplyGelu(backend, out, epilogue, stream);
  ApplySwiGluBackward(backend, out, epilogue, stream);
  ApplySwiGlu(backend, out, epilogue, stream);
  SumColumns(backend, out, epilogue, stream);
}

}  // namespace filigree

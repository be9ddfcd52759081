// CudaBackend::MatMul: row-major products as cuBLASLt's column-major ones, epilogues fused where
// they can be.
#include <cstdint>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/matmul_plans.h"
#include "kernels/cuda/product_finish.h"
#include "kernels/gelu_epilogue.h"
#include "kernels/matmul_batch.h"

namespace filigree {
namespace {

// Row-major out [M, N] = op(a) op(b) is column-major out^T [N, M] = op(b)^T op(a)^T, where each
// row-major matrix is read as its transpose: b comes first, and the transposes stay what they are.
MatMulCall CallOf(const MatMulArgs& args, TensorView result) {
  MatMulCall call;
  call.m = result.cols();
  call.n = result.rows();
  call.k = args.transpose_a ? args.a.rows() : args.a.cols();
  call.transpose_a = args.transpose_b;
  call.transpose_b = args.transpose_a;
  call.out_dtype = result.dtype();
  call.a = args.b.data();
  call.lda = args.b.row_stride();
  call.b = args.a.data();
  call.ldb = args.a.row_stride();
  call.d = result.data();
  call.ldd = result.row_stride();
  call.scale = static_cast<float>(args.scale);
  call.batch = args.batch.count;
  call.batch_a = args.batch.b;
  call.batch_b = args.batch.a;
  call.batch_d = args.batch.out;
  if (args.accumulate) {
    call.c = call.d;
    call.ldc = call.ldd;
  }
  return call;
}

void CheckShapes(const MatMulArgs& args) {
  const int64_t m = args.out.rows(), n = args.out.cols();
  const int64_t k = args.transpose_a ? args.a.rows() : args.a.cols();
  const int64_t k_of_b = args.transpose_b ? args.b.cols() : args.b.rows();
  CHECK(args.a.dtype() == DType::kBF16 && args.b.dtype() == DType::kBF16)
      << NameOf(args.a.dtype()) << " times " << NameOf(args.b.dtype());
  CHECK_EQ(args.transpose_a ? args.a.cols() : args.a.rows(), m);
  CHECK_EQ(args.transpose_b ? args.b.rows() : args.b.cols(), n);
  CHECK_EQ(k_of_b, k);
  CheckFinish(args.out, args.bias, args.epilogue);
}

bool IsAligned(ConstTensorView view) {
  return reinterpret_cast<uintptr_t>(view.data()) % 16 == 0 && view.row_stride() % 8 == 0 &&
         view.cols() % 8 == 0;
}

// The whole operation as one call of cuBLASLt, or false where that is not possible or not known to
// be exact.
bool Fuse(const MatMulArgs& args, MatMulCall* call) {
  const ProductEpilogue& epilogue = args.epilogue;
  const bool gelu = !epilogue.pre_activation.empty(), dgelu = !epilogue.gelu_input.empty();
  const bool bias = !args.bias.empty(), residual = !epilogue.residual.empty();
  if (!bias && !residual && !gelu && !dgelu) return true;
  if (args.out.dtype() != DType::kBF16 || !IsAligned(args.out)) return false;
  if (residual && (args.accumulate || gelu || dgelu)) return false;
  if ((gelu || dgelu) && args.accumulate) return false;
  if (dgelu && (bias || gelu)) return false;
  if (bias && reinterpret_cast<uintptr_t>(args.bias.data()) % 16 != 0) return false;

  if (residual) {
    call->c = epilogue.residual.data();
    call->ldc = epilogue.residual.row_stride();
  }
  if (bias) {
    call->epilogue = CUBLASLT_EPILOGUE_BIAS;
    call->bias = args.bias.data();
  }
  if (gelu || dgelu) {
    const ConstTensorView aux =
        gelu ? ConstTensorView(epilogue.pre_activation) : epilogue.gelu_input;
    if (!IsAligned(aux)) return false;
    call->aux = aux.data();
    call->ldaux = aux.row_stride();
    call->epilogue = dgelu  ? CUBLASLT_EPILOGUE_DGELU
                     : bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS
                            : CUBLASLT_EPILOGUE_GELU_AUX;
  }
  return true;
}

// cuBLASLt knows neither SwiGLU nor its gradient nor codes of GELU's.
bool NeedsPass(const ProductEpilogue& epilogue) {
  const bool reads_codes =
      !epilogue.gelu_input.empty() && epilogue.gelu_input.dtype() == DType::kU8;
  return !epilogue.swiglu.empty() || !epilogue.swiglu_output.empty() || epilogue.makes_codes() ||
         reads_codes;
}

// The result goes through memory, rounded, in the output's place.
void MultiplyThenFinish(CudaBackend& backend, const MatMulArgs& args, Stream& stream) {
  MatMulArgs product = args;
  product.epilogue = {.residual = args.epilogue.residual};
  backend.MatMul(product, stream);
  ProductEpilogue rest = args.epilogue;
  rest.residual = {};
  FinishProduct(backend, args.out, args.out, {}, rest, stream);
}

}  // namespace

void CudaBackend::MatMul(const MatMulArgs& args, Stream& stream) {
  CheckShapes(args);
  if (args.out.size() == 0) return SumColumns(*this, args.out, args.epilogue, stream);
  const cudaStream_t native = NativeStream(stream);
  const bool tune = !deterministic_;
  if (args.batch.count > 1) {
    if (matmul_plans_->Run(CallOf(args, args.out), tune, native)) return;
    return ForEachProduct(args, [&](const MatMulArgs& one) { MatMul(one, stream); });
  }
  if (NeedsPass(args.epilogue)) return MultiplyThenFinish(*this, args, stream);
  TensorView result = args.epilogue.ResultIn(args.out);
  const bool has_terms = (args.transpose_a ? args.a.rows() : args.a.cols()) > 0;
  if (has_terms) {
    MatMulCall fused = CallOf(args, args.out);
    if (Fuse(args, &fused) && matmul_plans_->Run(fused, tune, native)) {
      return SumColumns(*this, args.out, args.epilogue, stream);
    }
    if (!args.accumulate && result.dtype() == DType::kBF16) {
      // Rounded once, at the end, as where it is fused.
      const size_t bytes = static_cast<size_t>(result.size()) * sizeof(float);
      result = TensorView(Reserve(&product_, bytes), DType::kF32, {result.rows(), result.cols()});
    }
    CHECK(matmul_plans_->Run(CallOf(args, result), tune, native))
        << "cuBLASLt has no algorithm for " << args.out.rows() << " x " << args.out.cols();
  } else if (!args.accumulate) {
    device_.ZeroAsync(result, stream);
  }
  FinishProduct(*this, result, args.out, args.bias, args.epilogue, stream);
}

}  // namespace filigree

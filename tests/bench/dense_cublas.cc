#include "tests/bench/dense_cublas.h"

#include "kernels/cuda/cuda_check.h"

namespace filigree::bench {
namespace {

// What PyTorch gives cuBLAS on Hopper.
constexpr size_t kWorkspaceBytes = size_t{32} << 20;

void CheckCublas(cublasStatus_t status) {
  CHECK(status == CUBLAS_STATUS_SUCCESS) << "cuBLAS status " << status;
}

}  // namespace

DenseCublas::DenseCublas() {
  CheckCublas(cublasCreate(&handle_));
  CUDA_CHECK(cudaMalloc(&workspace_, kWorkspaceBytes));
  CheckCublas(cublasSetWorkspace(handle_, workspace_, kWorkspaceBytes));
}

DenseCublas::~DenseCublas() {
  cublasDestroy(handle_);
  cudaFree(workspace_);
}

void DenseCublas::Multiply(cublasOperation_t op_a, cublasOperation_t op_b, int64_t m, int64_t n,
                           int64_t k, const void* a, int64_t lda, const void* b, int64_t ldb,
                           void* c, int64_t ldc) {
  const float one = 1.0f, zero = 0.0f;
  CheckCublas(cublasGemmEx(handle_, op_a, op_b, static_cast<int>(m), static_cast<int>(n),
                           static_cast<int>(k), &one, a, CUDA_R_16BF, static_cast<int>(lda), b,
                           CUDA_R_16BF, static_cast<int>(ldb), &zero, c, CUDA_R_16BF,
                           static_cast<int>(ldc), CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

void DenseCublas::Forward(const __nv_bfloat16* x, const __nv_bfloat16* w, __nv_bfloat16* y,
                          int64_t t, int64_t n, int64_t k) {
  Multiply(CUBLAS_OP_T, CUBLAS_OP_N, n, t, k, w, k, x, k, y, n);
}

void DenseCublas::InputGrad(const __nv_bfloat16* dy, const __nv_bfloat16* w, __nv_bfloat16* dx,
                            int64_t t, int64_t n, int64_t k) {
  Multiply(CUBLAS_OP_N, CUBLAS_OP_N, k, t, n, w, k, dy, n, dx, k);
}

void DenseCublas::WeightGrad(const __nv_bfloat16* dy, const __nv_bfloat16* x, __nv_bfloat16* dw,
                             int64_t t, int64_t n, int64_t k) {
  Multiply(CUBLAS_OP_N, CUBLAS_OP_T, k, n, t, x, k, dy, n, dw, k);
}

}  // namespace filigree::bench

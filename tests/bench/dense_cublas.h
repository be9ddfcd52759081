// The dense peer: the three products of a linear layer through cuBLAS, bf16 in and out, fp32 sums.
#pragma once

#include <cublas_v2.h>
#include <cuda_bf16.h>

#include <cstdint>

namespace filigree::bench {

class DenseCublas {
 public:
  DenseCublas();
  ~DenseCublas();
  DenseCublas(const DenseCublas&) = delete;
  DenseCublas& operator=(const DenseCublas&) = delete;

  // All row-major and contiguous; x [t, k], w [n, k], y [t, n].
  void Forward(const __nv_bfloat16* x, const __nv_bfloat16* w, __nv_bfloat16* y, int64_t t,
               int64_t n, int64_t k);
  void InputGrad(const __nv_bfloat16* dy, const __nv_bfloat16* w, __nv_bfloat16* dx, int64_t t,
                 int64_t n, int64_t k);
  void WeightGrad(const __nv_bfloat16* dy, const __nv_bfloat16* x, __nv_bfloat16* dw, int64_t t,
                  int64_t n, int64_t k);

 private:
  // Column-major C[m, n] = op(A) op(B).
  void Multiply(cublasOperation_t op_a, cublasOperation_t op_b, int64_t m, int64_t n, int64_t k,
                const void* a, int64_t lda, const void* b, int64_t ldb, void* c, int64_t ldc);

  cublasHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
};

}  // namespace filigree::bench

// Matrix products through cuBLASLt: descriptors and an algorithm for each problem, found once.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <unordered_map>

#include "kernels/cuda/cuda_device.h"

namespace filigree {

// D = scale op(A) op(B) + beta C, column-major, as cuBLASLt sees it: D is m x n. A and B are BF16;
// C and D have one dtype. What is not filled in is not there.
struct MatMulCall {
  int64_t m = 0, n = 0, k = 0;
  bool transpose_a = false, transpose_b = false;
  DType out_dtype = DType::kBF16;
  const void* a = nullptr;
  const void* b = nullptr;
  const void* c = nullptr;  // added (beta = 1) where it is given; may be d
  void* d = nullptr;
  int64_t lda = 0, ldb = 0, ldc = 0, ldd = 0;  // elements
  float scale = 1;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const void* bias = nullptr;  // [m] BF16, where the epilogue has one
  const void* aux = nullptr;   // [m, n] BF16, what the epilogue reads or writes beside D
  int64_t ldaux = 0;
  // Products, and the elements between the operands and outputs of one and the next.
  int64_t batch = 1;
  int64_t batch_a = 0, batch_b = 0, batch_d = 0;
};

class MatMulPlans {
 public:
  // `device` must outlive the plans.
  explicit MatMulPlans(CudaDevice& device);
  ~MatMulPlans();
  MatMulPlans(const MatMulPlans&) = delete;
  MatMulPlans& operator=(const MatMulPlans&) = delete;

  // Submits the product and returns true; false, and nothing done, where cuBLASLt has no algorithm
  // for it, or a batch is faster one by one. Products of two streams must not overlap: they share a
  // workspace.
  //
  // A problem is shapes, strides, dtypes, epilogue and the pointers' alignment. At its first call,
  // if `tune`, the algorithms that the heuristics propose are timed, which waits for the device;
  // else the first of them is taken, which is the same in every run.
  bool Run(const MatMulCall& call, bool tune, cudaStream_t stream);
  // For other products on that stream.
  const DeviceBuffer& workspace() const { return workspace_; }

 private:
  using Key = std::array<int64_t, 19>;
  struct KeyHash {
    size_t operator()(const Key& key) const;
  };
  struct Plan {
    cublasLtMatmulDescOpaque_t operation;
    cublasLtMatrixLayoutOpaque_t a, b, c, d;
    cublasLtMatmulAlgo_t algorithm;
    bool possible = false;
    float milliseconds = 0;  // of the algorithm, where it was timed
  };

  static Key KeyOf(const MatMulCall& call);
  static void Describe(const MatMulCall& call, Plan* plan);
  static void SetPointers(const MatMulCall& call, Plan* plan);
  Plan& PlanOf(const MatMulCall& call, bool tune, cudaStream_t stream);
  void Choose(const MatMulCall& call, bool tune, Plan* plan, cudaStream_t stream);
  // Milliseconds of one run of `algorithm` with its output in `d`; infinite where it fails.
  float Time(const MatMulCall& call, const Plan& plan, const cublasLtMatmulAlgo_t& algorithm,
             void* d, cudaStream_t stream);
  cublasStatus_t Submit(const MatMulCall& call, const Plan& plan,
                        const cublasLtMatmulAlgo_t& algorithm, void* d, cudaStream_t stream);

  CudaDevice& device_;
  cublasLtHandle_t handle_ = nullptr;
  DeviceBuffer workspace_;
  std::unordered_map<Key, Plan, KeyHash> plans_;
};

}  // namespace filigree

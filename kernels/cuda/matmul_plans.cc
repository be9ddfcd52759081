#include "kernels/cuda/matmul_plans.h"

#include <algorithm>
#include <limits>
#include <string>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/timed_runs.h"
#include "kernels/cuda/trace.h"
#include "kernels/planned/gpu_sizes.h"

namespace filigree {
namespace {

constexpr int kCandidates = 8;
// Below this many multiplications launches cost more than a better algorithm gains.
constexpr int64_t kWorthTuning = int64_t{1} << 28;
constexpr int kTimedRuns = 4;

// The largest power of two, up to 256, that divides the address.
uint32_t AlignmentOf(const void* data) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  return address == 0 ? 256 : static_cast<uint32_t>(std::min<uintptr_t>(address & -address, 256));
}

cudaDataType_t CudaType(DType dtype) {
  CHECK(dtype == DType::kBF16 || dtype == DType::kF32) << NameOf(dtype);
  return dtype == DType::kBF16 ? CUDA_R_16BF : CUDA_R_32F;
}

template <typename T>
void Set(cublasLtMatmulDescOpaque_t* operation, cublasLtMatmulDescAttributes_t attribute, T value) {
  CUBLAS_CHECK(cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof(value)));
}

void Prefer(cublasLtMatmulPreferenceOpaque_t* preference,
            cublasLtMatmulPreferenceAttributes_t attribute, uint32_t value) {
  CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)));
}

void SetBatch(cublasLtMatrixLayoutOpaque_t* layout, int64_t count, int64_t stride) {
  const auto products = static_cast<int32_t>(count);
  CUBLAS_CHECK(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                                                &products, sizeof(products)));
  CUBLAS_CHECK(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                                &stride, sizeof(stride)));
}

std::string ShapeText(const MatMulCall& call) {
  return (call.batch > 1 ? std::to_string(call.batch) + " of " : "") + std::to_string(call.n) +
         "x" + std::to_string(call.m) + "x" + std::to_string(call.k) +
         (call.transpose_b ? " a^T" : "") + (call.transpose_a ? " b^T" : "") + " to " +
         std::string(NameOf(call.out_dtype)) + (call.c != nullptr ? " with addend" : "") +
         ", epilogue " + std::to_string(call.epilogue);
}

}  // namespace

MatMulPlans::MatMulPlans(CudaDevice& device)
    : device_(device), workspace_(device.Allocate(kCublasWorkspaceBytes, "scratch")) {
  CUBLAS_CHECK(cublasLtCreate(&handle_));
}

MatMulPlans::~MatMulPlans() { CUBLAS_CHECK(cublasLtDestroy(handle_)); }

size_t MatMulPlans::KeyHash::operator()(const Key& key) const {
  uint64_t hash = 0xcbf29ce484222325ull;  // FNV-1a over the words
  for (int64_t word : key) hash = (hash ^ static_cast<uint64_t>(word)) * 0x100000001b3ull;
  return hash ^ (hash >> 32);
}

MatMulPlans::Key MatMulPlans::KeyOf(const MatMulCall& call) {
  return {
      call.m,
      call.n,
      call.k,
      call.lda,
      call.ldb,
      call.ldc,
      call.ldd,
      call.ldaux,
      call.transpose_a + 2 * call.transpose_b + 4 * (call.c != nullptr) + 8 * (call.c == call.d),
      static_cast<int64_t>(call.out_dtype),
      static_cast<int64_t>(call.epilogue),
      AlignmentOf(call.a),
      AlignmentOf(call.b),
      AlignmentOf(call.c),
      AlignmentOf(call.d),
      call.batch,
      call.batch_a,
      call.batch_b,
      call.batch_d};
}

void MatMulPlans::Describe(const MatMulCall& call, Plan* plan) {
  const cudaDataType_t out = CudaType(call.out_dtype);
  CUBLAS_CHECK(cublasLtMatmulDescInit(&plan->operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  Set(&plan->operation, CUBLASLT_MATMUL_DESC_TRANSA, call.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  Set(&plan->operation, CUBLASLT_MATMUL_DESC_TRANSB, call.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  Set(&plan->operation, CUBLASLT_MATMUL_DESC_EPILOGUE, call.epilogue);
  if (call.bias != nullptr) {
    Set(&plan->operation, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, CUDA_R_16BF);
  }
  if (call.aux != nullptr) {
    Set(&plan->operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE, CUDA_R_16BF);
    Set(&plan->operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, call.ldaux);
  }
  CUBLAS_CHECK(cublasLtMatrixLayoutInit(&plan->a, CUDA_R_16BF, call.transpose_a ? call.k : call.m,
                                        call.transpose_a ? call.m : call.k, call.lda));
  CUBLAS_CHECK(cublasLtMatrixLayoutInit(&plan->b, CUDA_R_16BF, call.transpose_b ? call.n : call.k,
                                        call.transpose_b ? call.k : call.n, call.ldb));
  CUBLAS_CHECK(cublasLtMatrixLayoutInit(&plan->c, out, call.m, call.n,
                                        call.c != nullptr ? call.ldc : call.ldd));
  CUBLAS_CHECK(cublasLtMatrixLayoutInit(&plan->d, out, call.m, call.n, call.ldd));
  if (call.batch == 1) return;
  SetBatch(&plan->a, call.batch, call.batch_a);
  SetBatch(&plan->b, call.batch, call.batch_b);
  SetBatch(&plan->c, call.batch, call.batch_d);
  SetBatch(&plan->d, call.batch, call.batch_d);
}

void MatMulPlans::SetPointers(const MatMulCall& call, Plan* plan) {
  if (call.bias != nullptr) {
    Set(&plan->operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, call.bias);
  }
  if (call.aux != nullptr) {
    Set(&plan->operation, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, call.aux);
  }
}

cublasStatus_t MatMulPlans::Submit(const MatMulCall& call, const Plan& plan,
                                   const cublasLtMatmulAlgo_t& algorithm, void* d,
                                   cudaStream_t stream) {
  const float alpha = call.scale, beta = call.c != nullptr ? 1 : 0;
  // With beta = 0 the addend is not read.
  const void* c = call.c != nullptr ? call.c : d;
  return cublasLtMatmul(handle_, const_cast<cublasLtMatmulDescOpaque_t*>(&plan.operation), &alpha,
                        call.a, const_cast<cublasLtMatrixLayoutOpaque_t*>(&plan.a), call.b,
                        const_cast<cublasLtMatrixLayoutOpaque_t*>(&plan.b), &beta, c,
                        const_cast<cublasLtMatrixLayoutOpaque_t*>(&plan.c), d,
                        const_cast<cublasLtMatrixLayoutOpaque_t*>(&plan.d), &algorithm,
                        workspace_.data(), workspace_.bytes(), stream);
}

float MatMulPlans::Time(const MatMulCall& call, const Plan& plan,
                        const cublasLtMatmulAlgo_t& algorithm, void* d, cudaStream_t stream) {
  if (Submit(call, plan, algorithm, d, stream) != CUBLAS_STATUS_SUCCESS) {
    return std::numeric_limits<float>::infinity();
  }
  return MeanMilliseconds(
      kTimedRuns, [&] { CUBLAS_CHECK(Submit(call, plan, algorithm, d, stream)); }, stream);
}

void MatMulPlans::Choose(const MatMulCall& call, bool tune, Plan* plan, cudaStream_t stream) {
  cublasLtMatmulPreferenceOpaque_t preference;
  CUBLAS_CHECK(cublasLtMatmulPreferenceInit(&preference));
  const uint64_t workspace = workspace_.bytes();
  CUBLAS_CHECK(cublasLtMatmulPreferenceSetAttribute(
      &preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof(workspace)));
  Prefer(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, AlignmentOf(call.a));
  Prefer(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, AlignmentOf(call.b));
  Prefer(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
         AlignmentOf(call.c != nullptr ? call.c : call.d));
  Prefer(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, AlignmentOf(call.d));

  std::array<cublasLtMatmulHeuristicResult_t, kCandidates> found;
  int count = 0;
  const cublasStatus_t status =
      cublasLtMatmulAlgoGetHeuristic(handle_, &plan->operation, &plan->a, &plan->b, &plan->c,
                                     &plan->d, &preference, kCandidates, found.data(), &count);
  if (status != CUBLAS_STATUS_NOT_SUPPORTED) CUBLAS_CHECK(status);
  if (count == 0) return;
  plan->possible = true;
  plan->algorithm = found[0].algo;
  if (!tune || count == 1 || call.batch * call.m * call.n * call.k < kWorthTuning) return;

  // The output goes elsewhere meanwhile: it may be an addend too. Without room for that, the first
  // proposal will do.
  void* trial = nullptr;
  const int64_t trial_count = (call.batch - 1) * call.batch_d + call.ldd * call.n;
  if (cudaMalloc(&trial, trial_count * SizeOf(call.out_dtype)) != cudaSuccess) {
    cudaGetLastError();
    return;
  }
  float best = std::numeric_limits<float>::infinity();
  for (int i = 0; i < count; ++i) {
    const float time = Time(call, *plan, found[i].algo, trial, stream);
    if (time >= best) continue;
    best = time;
    plan->algorithm = found[i].algo;
  }
  CUDA_CHECK(cudaFree(trial));
  plan->milliseconds = best;
  if (TraceKernels()) {
    const double flops =
        2.0 * static_cast<double>(call.batch * call.m * call.n) * static_cast<double>(call.k);
    TraceChoice("matmul", ShapeText(call),
                "cublasLt, " + std::to_string(1000 * best) + " us, " +
                    std::to_string(flops / best / 1e9) + " TFLOP/s");
  }
}

MatMulPlans::Plan& MatMulPlans::PlanOf(const MatMulCall& call, bool tune, cudaStream_t stream) {
  const auto [entry, inserted] = plans_.try_emplace(KeyOf(call));
  Plan& plan = entry->second;
  if (!inserted) return plan;
  Describe(call, &plan);
  SetPointers(call, &plan);
  Choose(call, tune, &plan, stream);
  if (call.batch == 1 || plan.milliseconds == 0) return plan;
  MatMulCall one = call;
  one.batch = 1;
  one.batch_a = one.batch_b = one.batch_d = 0;
  const Plan& single = PlanOf(one, tune, stream);
  const float apart = static_cast<float>(call.batch) * single.milliseconds;
  if (single.milliseconds > 0 && apart < plan.milliseconds) plan.possible = false;
  return plan;
}

bool MatMulPlans::Run(const MatMulCall& call, bool tune, cudaStream_t stream) {
  Plan& plan = PlanOf(call, tune, stream);
  if (!plan.possible) return false;
  SetPointers(call, &plan);
  CUBLAS_CHECK(Submit(call, plan, plan.algorithm, call.d, stream));
  return true;
}

}  // namespace filigree

#include "kernels/cuda/two_four_product.h"

#include <algorithm>
#include <utility>

#include "kernels/cuda/cuda_check.h"

namespace filigree {
namespace {

constexpr uint32_t kAlignment = 16;  // bytes, of every matrix

bool Ok(cusparseStatus_t status) { return status == CUSPARSE_STATUS_SUCCESS; }

// W as a column-major [in, out], whose transpose is the left factor of y^T = W x^T, and itself that
// of dx^T = W^T dy^T.
cusparseOperation_t OperationOf(const TwoFourSide& side) {
  return side.transposed ? CUSPARSE_OPERATION_NON_TRANSPOSE : CUSPARSE_OPERATION_TRANSPOSE;
}

cusparseStatus_t DescribeWeight(const TwoFourSide& side, const CuSparseLtContext& context,
                                cusparseLtMatDescriptor_t* weight) {
  return context.library().StructuredDescriptorInit(
      context.handle(), weight, side.in, side.out, side.in, kAlignment, CUDA_R_16BF,
      CUSPARSE_ORDER_COL, CUSPARSELT_SPARSITY_50_PERCENT);
}

}  // namespace

std::unique_ptr<CuSparseLtContext> CuSparseLtContext::Make() {
  const CuSparseLt* library = CuSparseLt::Find();
  if (library == nullptr) return nullptr;
  std::unique_ptr<CuSparseLtContext> context(new CuSparseLtContext(*library));
  context->initialised_ = Ok(library->Init(&context->handle_));
  return context->initialised_ ? std::move(context) : nullptr;
}

CuSparseLtContext::~CuSparseLtContext() {
  if (initialised_) library_.Destroy(&handle_);
}

std::unique_ptr<CompressedSide> CompressedSide::Make(const TwoFourSide& side,
                                                     const CuSparseLtContext& context,
                                                     CudaDevice& device) {
  std::unique_ptr<CompressedSide> made(new CompressedSide(side, context, device));
  made->described_ = Ok(DescribeWeight(side, context, &made->weight_));
  if (!made->described_ ||
      !Ok(context.library().SpMMACompressedSize2(context.handle(), &made->weight_, &made->bytes_,
                                                 &made->scratch_bytes_))) {
    return nullptr;
  }
  made->values_ = device.Allocate(made->bytes_, "compute_copies");
  return made;
}

CompressedSide::~CompressedSide() {
  if (described_) context_.library().MatDescriptorDestroy(&weight_);
}

void CompressedSide::CompressByLibrary(const void* weight, void* words, void* scratch,
                                       cudaStream_t stream) const {
  CUSPARSELT_CHECK(context_.library(),
                   SpMMACompress2(context_.handle(), &weight_, /*isSparseA=*/1, OperationOf(side_),
                                  weight, words, scratch, stream));
}

void CompressedSide::Begin(const void* weight, std::shared_ptr<const CompressedPlaces> places,
                           void* scratch, cudaStream_t stream) {
  CompressByLibrary(weight, values_.data(), scratch, stream);
  if (places == nullptr) return;
  DeviceBuffer mask = device_.Allocate(MaskBytes(side_), "compute_copies");
  if (!MakeMask(side_, weight, mask.data(), stream)) return;
  if (!PutsAsLibrary(*places, weight, mask.data(), values_.data(), bytes_, stream)) return;
  places_ = std::move(places);
  mask_ = std::move(mask);
}

void CompressedSide::Compress(const void* weight, void* scratch, cudaStream_t stream) {
  if (!places_) return CompressByLibrary(weight, values_.data(), scratch, stream);
  PutValues(*places_, weight, mask_.data(), values_.data(), stream);
}

std::unique_ptr<TwoFourProduct> TwoFourProduct::Make(const TwoFourCall& call, int algorithm,
                                                     const CuSparseLtContext& context) {
  std::unique_ptr<TwoFourProduct> made(new TwoFourProduct(call, algorithm, context));
  return made->Describe() && made->Select() ? std::move(made) : nullptr;
}

TwoFourProduct::~TwoFourProduct() {
  const CuSparseLt& library = context_.library();
  if (has_plan_) library.MatmulPlanDestroy(&plan_);
  if (has_selection_) library.MatmulAlgSelectionDestroy(&selection_);
  for (int i = 0; i < matrix_count_; ++i) library.MatDescriptorDestroy(&matrices_[i]);
}

bool TwoFourProduct::Describe() {
  const CuSparseLt& library = context_.library();
  const TwoFourSide& side = call_.side;
  auto& [weight, input, addend, result] = matrices_;
  const auto dense = [&](cusparseLtMatDescriptor_t* matrix, int64_t rows, int64_t stride) {
    const bool ok =
        Ok(library.DenseDescriptorInit(context_.handle(), matrix, rows, call_.tokens, stride,
                                       kAlignment, CUDA_R_16BF, CUSPARSE_ORDER_COL));
    matrix_count_ += ok ? 1 : 0;
    return ok;
  };
  if (!Ok(DescribeWeight(side, context_, &weight))) return false;
  ++matrix_count_;
  const int64_t addend_stride = call_.addend ? call_.addend_stride : call_.result_stride;
  if (!dense(&input, side.depth(), call_.input_stride)) return false;
  if (!dense(&addend, side.width(), addend_stride)) return false;
  if (!dense(&result, side.width(), call_.result_stride)) return false;
  if (!Ok(library.MatmulDescriptorInit(context_.handle(), &operation_, OperationOf(side),
                                       CUSPARSE_OPERATION_NON_TRANSPOSE, &weight, &input, &addend,
                                       &result, CUSPARSE_COMPUTE_32F))) {
    return false;
  }
  if (call_.bias == nullptr) return true;
  return Ok(library.MatmulDescSetAttribute(context_.handle(), &operation_,
                                           CUSPARSELT_MATMUL_BIAS_POINTER, &call_.bias,
                                           sizeof(call_.bias)));
}

bool TwoFourProduct::Select() {
  const CuSparseLt& library = context_.library();
  has_selection_ = Ok(library.MatmulAlgSelectionInit(context_.handle(), &selection_, &operation_,
                                                     CUSPARSELT_MATMUL_ALG_DEFAULT));
  if (!has_selection_) return false;
  if (!Ok(library.MatmulAlgGetAttribute(context_.handle(), &selection_,
                                        CUSPARSELT_MATMUL_ALG_CONFIG_MAX_ID, &algorithms_,
                                        sizeof(algorithms_)))) {
    return false;
  }
  if (algorithm_ != kDefaultAlgorithm &&
      !Ok(library.MatmulAlgSetAttribute(context_.handle(), &selection_,
                                        CUSPARSELT_MATMUL_ALG_CONFIG_ID, &algorithm_,
                                        sizeof(algorithm_)))) {
    return false;
  }
  has_plan_ = Ok(library.MatmulPlanInit(context_.handle(), &plan_, &operation_, &selection_));
  return has_plan_ && Ok(library.MatmulGetWorkspace(context_.handle(), &plan_, &workspace_bytes_));
}

bool TwoFourProduct::Run(const TwoFourCall& call, const void* compressed, void* workspace,
                         cudaStream_t stream) {
  const float alpha = 1, beta = call.addend != nullptr ? 1 : 0;
  // With beta = 0 the addend is not read.
  const void* addend = call.addend != nullptr ? call.addend : call.result;
  return Ok(context_.library().Matmul(context_.handle(), &plan_, &alpha, compressed, call.input,
                                      &beta, addend, call.result, workspace, &stream, 1));
}

}  // namespace filigree

#include "kernels/cuda/two_four_weight.h"

#include <utility>

#include "kernels/cuda/cusparselt.h"
#include "kernels/cuda/product_finish.h"
#include "kernels/cuda/trace.h"
#include "kernels/planned/gpu_sizes.h"

namespace filigree {
namespace {

// Training and evaluation take two or three each.
constexpr size_t kProductsKept = 8;

}  // namespace

CudaTwoFourWeight::CudaTwoFourWeight(ConstTensorView weight, TwoFourKind kind,
                                     std::shared_ptr<TwoFourPlans> plans, CudaBackend& backend)
    : weight_(weight), kind_(kind), backend_(backend), plans_(std::move(plans)) {
  CHECK(weight.contiguous() && weight.dtype() == DType::kBF16);
}

void CudaTwoFourWeight::Update(Stream& stream) {
  for (const auto& side : sides_) {
    if (side) side->Compress(weight_.data(), plans_->workspace(), NativeStream(stream));
  }
}

void CudaTwoFourWeight::MatMul(const MatMulArgs& args, Stream& stream) {
  CHECK(args.b.data() == weight_.data());
  const std::optional<TwoFourCall> call = TwoFourCallOf(args, kind_);
  if (!call || !Multiply(*call, args, stream)) backend_.MatMul(args, stream);
}

bool CudaTwoFourWeight::Multiply(const TwoFourCall& call, const MatMulArgs& args, Stream& stream) {
  CHECK_EQ(args.a.cols(), call.side.depth());
  CHECK(args.out.rows() == call.tokens && args.out.cols() == call.side.width());
  CheckFinish(args.out, args.bias, args.epilogue);
  const TwoFourChoice* choice = plans_->Find(call, args);
  if (choice != nullptr && !choice->sparse) return false;
  std::unique_ptr<CompressedSide>& side = sides_[call.side.transposed ? 1 : 0];
  const bool had_side = side != nullptr;
  if (!had_side) side = plans_->Compress(call.side, weight_.data(), stream);
  if (choice == nullptr) choice = &plans_->Choose(call, args, side.get(), stream);
  if (!choice->sparse) {
    if (!had_side) side.reset();
    return false;
  }
  CHECK(side != nullptr &&
        plans_->Run(ProductOf(call, choice->algorithm), call, args, *side, stream))
      << "cuSPARSELt refuses a product that it computed before";
  return true;
}

TwoFourProduct& CudaTwoFourWeight::ProductOf(const TwoFourCall& call, int algorithm) {
  for (const auto& product : products_) {
    if (product->algorithm() == algorithm && product->call().IsLike(call)) return *product;
  }
  products_.push_front(TwoFourProduct::Make(call, algorithm, plans_->context()));
  CHECK(products_.front() != nullptr) << "cuSPARSELt does not know its own algorithm " << algorithm;
  if (products_.size() > kProductsKept) products_.pop_back();
  return *products_.front();
}

std::unique_ptr<TwoFourWeight> CudaBackend::PrepareTwoFour(ConstTensorView weight,
                                                           TwoFourKind kind) {
  if (CompressedBytes(weight.rows(), weight.cols(), kind, device_.card()) == 0) return nullptr;
  if (deterministic_) {
    TraceChoice("2:4", "weights",
                "multiplied densely, since choices by time are not deterministic");
    return nullptr;
  }
  if (!two_four_plans_) two_four_plans_ = TwoFourPlans::Make(*this);
  if (!two_four_plans_) return nullptr;
  return std::make_unique<CudaTwoFourWeight>(weight, kind, two_four_plans_, *this);
}

int64_t CudaBackend::TwoFourBytes(int64_t out, int64_t in, TwoFourKind kind) const {
  const int64_t bytes = CompressedBytes(out, in, kind, device_.card());
  return bytes == 0 || deterministic_ || CuSparseLt::Find() == nullptr ? 0 : bytes;
}

}  // namespace filigree

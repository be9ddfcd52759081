// The host's side of SddmmBsrKernel (sddmm_kernel_sm90.cuh).
#include <algorithm>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/sddmm_bsr_sm90.h"
#include "kernels/cuda/sddmm_kernel_sm90.cuh"
#include "kernels/cuda/tensor_map.h"

namespace filigree {
namespace {

using namespace sm90;  // NOLINT: device primitives, file-local

template <int kWidth, typename Gradient>
void Launch(const SddmmParams<Gradient>& params, const SddmmConfig& config,
            const SddmmKernelArgs& args, cudaStream_t stream) {
  constexpr int kSharedBytes = SddmmShape<kWidth>::kSharedBytes;
  const auto kernel = SddmmBsrKernel<kWidth, Gradient>;
  static const bool configured = [kernel] {
    CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
    return true;
  }();
  static_cast<void>(configured);
  kernel<<<config.workers, kSddmmThreads, kSharedBytes, stream>>>(params);
  CUDA_CHECK(cudaGetLastError());
  if (args.reduction_count > 0) {
    SddmmReduceKernel<kWidth, Gradient><<<dim3(args.reduction_count, 32), kConsumers, 0, stream>>>(
        params.gradient, params.partials, params.units, args.reductions, params.cols,
        params.accumulate);
    CUDA_CHECK(cudaGetLastError());
  }
  if (params.sums.out == nullptr) return;
  SddmmSumKernel<kWidth, Gradient>
      <<<(params.sums.out_features + kConsumers - 1) / kConsumers, kConsumers, 0, stream>>>(
          params.sums);
  CUDA_CHECK(cudaGetLastError());
}

template <typename Gradient>
void Launch(const SddmmDesc& desc, const SddmmConfig& config, const SddmmKernelArgs& args,
            cudaStream_t stream) {
  SddmmParams<Gradient> params;
  params.operands[0] =
      EncodeChunkMap(args.input, desc.tokens, desc.in_features, args.input_stride, 64);
  params.operands[1] =
      EncodeChunkMap(args.output_grad, desc.tokens, desc.out_features, args.output_grad_stride, 64);
  params.cols = desc.block.cols;
  params.gradient = static_cast<Gradient*>(args.gradient);
  params.partials = args.partials;
  params.arrivals = args.reduction_count > 0 ? nullptr : args.arrivals;
  params.units = args.units;
  params.segments = args.segments;
  params.worker_begin = args.worker_begin;
  params.accumulate = args.accumulate;
  params.pace = {};
  if (args.paced) {
    CHECK(args.pace != nullptr && args.worker_steps > 0);
    constexpr int kWindowSteps = 4;
    const int steps =
        std::max(kWindowSteps, (args.worker_steps + kSddmmPaceWindows - 1) / kSddmmPaceWindows);
    params.pace = {args.pace, (args.worker_steps + steps - 1) / steps, steps};
  }
  params.sums = {.out = static_cast<Gradient*>(args.sums),
                 .partials = args.sum_partials,
                 .begin = args.sum_begin,
                 .segments = args.sum_segments,
                 .out_features = static_cast<int>(desc.out_features),
                 .accumulate = args.accumulate_sums};
  if (std::max(desc.block.rows, desc.block.cols) == 64) {
    Launch<64>(params, config, args, stream);
  } else {
    Launch<128>(params, config, args, stream);
  }
}

}  // namespace

bool CanImplementSddmmBsrSm90(const SddmmDesc& desc) {
  const auto valid = [](int extent) { return extent == 64 || extent == 128; };
  return valid(desc.block.rows) && valid(desc.block.cols) && desc.tokens > 0 &&
         desc.out_features % desc.block.rows == 0 && desc.in_features % desc.block.cols == 0 &&
         (desc.gradient_dtype == DType::kF32 || desc.gradient_dtype == DType::kBF16);
}

SddmmConfig ConfigSddmmBsrSm90(const SddmmDesc& /*desc*/, int multiprocessors) {
  return {.workers = multiprocessors};
}

void LaunchSddmmBsrSm90(const SddmmDesc& desc, const SddmmConfig& config,
                        const SddmmKernelArgs& args, cudaStream_t stream) {
  CHECK(CanImplementSddmmBsrSm90(desc));
  if (desc.gradient_dtype == DType::kBF16) {
    Launch<__nv_bfloat16>(desc, config, args, stream);
  } else {
    Launch<float>(desc, config, args, stream);
  }
}

}  // namespace filigree

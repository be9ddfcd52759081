// Weight gradient of a block-sparse product on Hopper: dW = dY^T X on the stored blocks only.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/cuda/block_schedule.h"

namespace filigree {

struct SddmmDesc {
  BlockShape block;
  int64_t tokens = 0;
  int64_t out_features = 0;
  int64_t in_features = 0;
  int64_t block_count = 0;
  DType gradient_dtype = DType::kF32;  // or BF16
};

struct SddmmConfig {
  int workers = 132;  // CTAs; the schedule is built for as many
};

// Device pointers; all arrays are owned by the caller and must outlive the launch.
struct SddmmKernelArgs {
  const __nv_bfloat16* output_grad = nullptr;  // dY [tokens, out_features]
  const __nv_bfloat16* input = nullptr;        // X [tokens, in_features]
  void* gradient = nullptr;                    // [block_count, block.rows, block.cols]
  float* partials = nullptr;                   // SddmmPartialBytes(slot_count) of scratch
  int64_t output_grad_stride = 0;
  int64_t input_stride = 0;
  bool accumulate = false;  // true: gradient += dW; false: gradient = dW
  // BuildSddmmSchedule(pattern, tokens, workers).
  const SddmmUnit* units = nullptr;
  const SddmmSegment* segments = nullptr;
  const int32_t* worker_begin = nullptr;
  const int32_t* reductions = nullptr;
  int reduction_count = 0;
  int worker_steps = 0;  // SddmmSchedule::worker_steps
  bool paced = false;    // SddmmSchedule::paced
  // [kSddmmPaceWindows + 1] zeros, as which they are left; not of two launches at a time. Read
  // where the schedule is paced.
  uint32_t* pace = nullptr;
  // [kSddmmArrivals] zeros, with the same conditions: which partial sums are there.
  uint32_t* arrivals = nullptr;
  // The sums of dY over the tokens, the gradient of a bias, on the way; only with a schedule that
  // has sum lists (SddmmSchedule::sum_begin). None: nullptr.
  void* sums = nullptr;           // [out_features], of the gradient's dtype
  float* sum_partials = nullptr;  // SddmmSumBytes(segments) of scratch
  bool accumulate_sums = false;
  const int32_t* sum_begin = nullptr;
  const int32_t* sum_segments = nullptr;
};

struct SddmmVariant {
  const char* name;
  bool (*can_implement)(const SddmmDesc&);
  SddmmConfig (*config)(const SddmmDesc&, int multiprocessors);
  void (*launch)(const SddmmDesc&, const SddmmConfig&, const SddmmKernelArgs&, cudaStream_t);
};

inline constexpr int kSddmmPaceWindows = 1023;
inline constexpr int kSddmmArrivals = 2 * kSddmmMaxSlots;

bool CanImplementSddmmBsrSm90(const SddmmDesc& desc);
SddmmConfig ConfigSddmmBsrSm90(const SddmmDesc& desc, int multiprocessors);
void LaunchSddmmBsrSm90(const SddmmDesc& desc, const SddmmConfig& config,
                        const SddmmKernelArgs& args, cudaStream_t stream);

}  // namespace filigree

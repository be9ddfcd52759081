// Weight gradient of a block-sparse product on mma.sync (sm_80 and later): dW (+)= dY^T X on the
// stored blocks only.
//
// The general path beside spmm_bsr_mma.h, for the same weights: cells of edge blocks outside the
// weight receive zero.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "kernels/base/dtype.h"
#include "kernels/cuda/block_schedule.h"

namespace filigree {

struct SddmmMmaDesc {
  BlockShape block;  // sides of 16, 32, 64 or 128
  int64_t tokens = 0;
  int64_t out_features = 0;  // multiples of 8, of the block or not
  int64_t in_features = 0;
  int64_t block_count = 0;             // stored blocks
  DType gradient_dtype = DType::kF32;  // or kBF16
};

// Device pointers, owned by the caller. Matrices begin at multiples of 16 bytes and have row
// strides that are multiples of 8 elements.
struct SddmmMmaArgs {
  const int32_t* row_offsets = nullptr;        // [ceil(out / block.rows) + 1]
  const int32_t* columns = nullptr;            // [block_count]
  const __nv_bfloat16* output_grad = nullptr;  // dY [tokens, out_features]
  int64_t output_grad_stride = 0;
  const __nv_bfloat16* input = nullptr;  // X [tokens, in_features]
  int64_t input_stride = 0;
  void* gradient =
      nullptr;  // [block_count, block.rows, block.cols] of gradient_dtype, 16-byte aligned
  bool accumulate = false;  // true: gradient += dW, summed in fp32, rounded once; false: overwrites
  std::byte* workspace = nullptr;  // SddmmMmaWorkspaceBytes; 16-byte aligned
};

bool CanImplementSddmmBsrMma(const SddmmMmaDesc& desc);

// Ranges of tokens that are summed apart, each into a partial gradient, where the blocks are too
// few to fill the card; 1 needs no workspace. The order of every sum is a function of (desc,
// multiprocessors), so results are repeatable bit for bit.
int SddmmMmaSplits(const SddmmMmaDesc& desc, int multiprocessors);
size_t SddmmMmaWorkspaceBytes(const SddmmMmaDesc& desc, int multiprocessors);

void LaunchSddmmBsrMma(const SddmmMmaDesc& desc, int multiprocessors, const SddmmMmaArgs& args,
                       cudaStream_t stream);

}  // namespace filigree

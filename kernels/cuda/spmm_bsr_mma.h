// Block-sparse products Y = X W^T + bias and dX = dY W on mma.sync (sm_80 and later), from the same
// stored blocks.
//
// The general path: any card since Ampere, and on Hopper whatever the wgmma kernels do not take. W
// [out, in] is blocked; the grid of blocks covers it, and edge blocks are stored whole, their cells
// outside the weight zero. A row of X or dY is read up to its width, never beyond.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/block_schedule.h"

namespace filigree {

struct SpmmMmaDesc {
  BlockShape block;         // sides of 16, 32, 64 or 128
  bool transposed = false;  // false: Y = X W^T; true: dX = dY W
  int64_t tokens = 0;
  int64_t out_features = 0;  // multiples of 8, of the block or not
  int64_t in_features = 0;

  int64_t input_width() const { return transposed ? out_features : in_features; }
  int64_t output_width() const { return transposed ? in_features : out_features; }
};

// Device pointers, owned by the caller. Matrices begin at multiples of 16 bytes and have row
// strides that are multiples of 8 elements. With G = ceil(output_width / block side along the
// output):
struct SpmmMmaArgs {
  const __nv_bfloat16* values = nullptr;  // [blocks, block.rows, block.cols]
  // The output's block column g is the sum over p in [offsets[g], offsets[g + 1]) of the input's
  // block column panels[p] times block slots[p] of `values` (block p where slots is null). For Y:
  // row offsets, columns, null; for dX: column offsets, rows and slots of the transposed index.
  const int32_t* offsets = nullptr;  // [G + 1]
  const int32_t* panels = nullptr;
  const int32_t* slots = nullptr;
  const __nv_bfloat16* input = nullptr;  // [tokens, input_width]
  int64_t input_stride = 0;
  __nv_bfloat16* output = nullptr;  // [tokens, output_width], written whole
  int64_t output_stride = 0;
  const __nv_bfloat16* bias = nullptr;  // [output_width] or null
  // [tokens, output_width] or null: is added before the one rounding. `output` itself accumulates.
  const __nv_bfloat16* addend = nullptr;
  int64_t addend_stride = 0;
};

bool CanImplementSpmmBsrMma(const SpmmMmaDesc& desc);
// No workspace; sums in a fixed order, so repeatable bit for bit.
void LaunchSpmmBsrMma(const SpmmMmaDesc& desc, const SpmmMmaArgs& args, cudaStream_t stream);

}  // namespace filigree

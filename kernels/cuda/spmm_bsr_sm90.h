// Block-sparse products Y = X W^T and dX = dY W on Hopper, from the same stored blocks; thin
// factors beside the weight are summed into the same accumulators: Y += U B^T, dX += U A.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/block_schedule.h"

namespace filigree {

// What happens to the sums (bias added) before they are stored.
enum class SpmmFinish {
  kStore,         // output = sum
  kResidual,      // output = sum + operand (forward only)
  kGelu,          // beside = sum, output = gelu(sum) (forward only)
  kGeluBackward,  // output = sum * gelu'(operand) (transposed only)
  // output = sum, halves of its features being gate and up; beside = silu(gate) * up (forward only)
  kSwiGlu,
  // output = sum * up * silu'(operand), beside = sum * silu(operand) (transposed only)
  kSwiGluBackward,
  kGeluCode,      // codes = those of gelu'(sum), output = gelu(sum) (forward only)
  kGeluCodeBackward,  // output = sum * what codes stand for (transposed only)
};

struct SpmmDesc {
  BlockShape block;
  bool transposed = false;  // false: Y = X W^T; true: dX = dY W
  int64_t tokens = 0;
  int64_t out_features = 0;
  int64_t in_features = 0;
  int64_t block_count = 0;
  int64_t stored_rows = 0;  // BsrPattern::value_extent() / block.cols
  SpmmFinish finish = SpmmFinish::kStore;
  // Thin factors beside the weight; 0 where there are none. Multiples of 64.
  int64_t factor_depth = 0;  // that they add to each output's sum
  int64_t inner_width = 0;   // columns of what is between the factors
  int64_t factor_rows = 0;   // of the operand that holds the factors, and its columns
  int64_t factor_cols = 0;

  int64_t input_width() const { return transposed ? out_features : in_features; }
  int64_t output_width() const { return transposed ? in_features : out_features; }
  int tile_features() const { return transposed ? block.cols : block.rows; }
};

// A pure function of the problem and of the number of multiprocessors.
struct SpmmConfig {
  int cluster = 1;  // CTAs along the tokens that share each weight slice by multicast
  // One more stage, for half of the buffers; kStore and kGelu of 128 features only.
  bool deep_ring = false;
  SpmmTiling tiling;
};

// Device pointers; all arrays are owned by the caller and must outlive the launch.
struct SpmmKernelArgs {
  const __nv_bfloat16* values = nullptr;  // [stored_rows, block.cols]
  const __nv_bfloat16* input = nullptr;   // [tokens, input_width], row stride input_stride
  __nv_bfloat16* output = nullptr;        // [tokens, output_width], written whole
  int64_t input_stride = 0;
  int64_t output_stride = 0;
  const __nv_bfloat16* factors = nullptr;  // [factor_rows, factor_cols], contiguous
  const __nv_bfloat16* inner = nullptr;    // [tokens, inner_width]
  int64_t inner_stride = 0;
  const __nv_bfloat16* bias = nullptr;     // [output_width] or none
  const __nv_bfloat16* operand = nullptr;  // [tokens, output_width], where the finish has one; rows
  int64_t operand_stride = 0;              // begin at multiples of 16 bytes
  const __nv_bfloat16* up = nullptr;       // as operand, kSwiGluBackward only
  int64_t up_stride = 0;
  // [tokens, output_width], what the finish stores beside the output: kGelu's pre_activation,
  // kSwiGluBackward's other gradient; kSwiGlu's, of half the width.
  __nv_bfloat16* beside = nullptr;
  int64_t beside_stride = 0;
  // [tokens, output_width] of kernels/base/gelu_code.h, where the finish has them: kGeluCode writes
  // them. Rows begin at multiples of 16 bytes.
  const uint8_t* codes = nullptr;
  int64_t codes_stride = 0;
  // [SpmmSumRows(tokens), output_width] or none, the two backward finishes only: sums of the output as
  // it is stored over 256 tokens each.
  float* sums = nullptr;
  // BuildSpmmSchedule(pattern, transposed, tokens, tiling, factors)
  const SpmmStep* steps = nullptr;
  const SpmmTile* tiles = nullptr;
  const int32_t* worker_begin = nullptr;
};

struct SpmmVariant {
  const char* name;
  bool (*can_implement)(const SpmmDesc&);
  SpmmConfig (*config)(const SpmmDesc&, int multiprocessors);
  void (*launch)(const SpmmDesc&, const SpmmConfig&, const SpmmKernelArgs&, cudaStream_t);
};

inline int64_t SpmmSumRows(int64_t tokens) { return (tokens + 255) / 256; }

bool CanImplementSpmmBsrSm90(const SpmmDesc& desc);
SpmmConfig ConfigSpmmBsrSm90(const SpmmDesc& desc, int multiprocessors);
void LaunchSpmmBsrSm90(const SpmmDesc& desc, const SpmmConfig& config, const SpmmKernelArgs& args,
                       cudaStream_t stream);

}  // namespace filigree

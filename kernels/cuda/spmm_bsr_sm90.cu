// Choice and launch of the Hopper kernels of the block-sparse products (spmm_kernel_sm90.cuh). Each
// finish is compiled in a file of its own.
#include "kernels/cuda/spmm_bsr_sm90.h"

#include <algorithm>

#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/spmm_launch_sm90.h"
#include "kernels/cuda/spmm_shape_sm90.cuh"
#include "kernels/cuda/tensor_map.h"

namespace filigree {

bool CanImplementSpmmBsrSm90(const SpmmDesc& desc) {
  const auto valid = [](int extent) { return extent == 64 || extent == 128; };
  return valid(desc.block.rows) && valid(desc.block.cols) && desc.tokens > 0 &&
         desc.factor_depth % kChunk == 0 && desc.inner_width % kChunk == 0 &&
         desc.factor_cols % kChunk == 0 &&
         (desc.finish != SpmmFinish::kSwiGlu || desc.out_features % (2 * desc.block.rows) == 0) &&
         desc.out_features % desc.block.rows == 0 && desc.in_features % desc.block.cols == 0;
}

SpmmConfig ConfigSpmmBsrSm90(const SpmmDesc& desc, int multiprocessors) {
  SpmmConfig config;
  const int cta_tokens = desc.tile_features() == 128 ? 256 : 512;
  // Tuned on an H100 at 16,384 tokens: sharing weights in pairs gains 10 % at half the blocks, nothing
  // with 64 features or few blocks, where the lock-step costs as much.
  const double density = static_cast<double>(desc.block_count) * desc.block.rows * desc.block.cols /
                             (static_cast<double>(desc.out_features) * desc.in_features) +
                         static_cast<double>(desc.factor_depth) / desc.input_width();
  config.cluster = cta_tokens == 256 && density > 0.15 && desc.tokens > cta_tokens ? 2 : 1;
  // Without an operand, tiles of many steps gain 1 to 4 % by the stage, and tiles of few lose 5 to
  // 10 % by the buffers.
  const double steps = density * static_cast<double>(desc.input_width()) / kChunk;
  const bool has_ring = desc.finish == SpmmFinish::kStore || desc.finish == SpmmFinish::kGelu;
  config.deep_ring = has_ring && cta_tokens == 256 && steps >= 6;
  config.tiling.workers = multiprocessors / config.cluster;
  config.tiling.tile_tokens = cta_tokens * config.cluster;
  // Larger groups let the input's panel fall out of the L2. Where one tile of tokens has work for
  // about all clusters, a second one costs 1 to 4 %; with few block rows it gains as much, and with
  // pairs up to 2 %.
  const int64_t block_rows = desc.output_width() / desc.tile_features();
  config.tiling.pairs = desc.finish == SpmmFinish::kSwiGlu;
  const bool one_is_enough = !config.tiling.pairs && config.cluster == 2 &&
                             10 * block_rows >= 7 * config.tiling.workers;
  config.tiling.token_group = one_is_enough ? 1 : 2;
  return config;
}

void LaunchSpmmBsrSm90(const SpmmDesc& desc, const SpmmConfig& config, const SpmmKernelArgs& args,
                       cudaStream_t stream) {
  using namespace sm90;  // NOLINT: device-side names
  CHECK(CanImplementSpmmBsrSm90(desc));
  const int features = desc.tile_features();
  constexpr int store_tokens = SpmmShape<128, SpmmForm::kBuffers>::kStoreTokens;  // of every shape
  const auto store_map = [&](__nv_bfloat16* data, int64_t stride) {
    return EncodeStoreMap(data, desc.tokens, desc.output_width(), stride, store_tokens);
  };
  SpmmParams params = {};
  params.weight = EncodeChunkMap(args.values, std::max<int64_t>(desc.stored_rows, 1),
                                 desc.block.cols, desc.block.cols,
                                 std::min(64, features / config.cluster));
  params.input =
      EncodeChunkMap(args.input, desc.tokens, desc.input_width(), args.input_stride, 256);
  params.factors = params.weight;
  params.inner = params.input;
  if (desc.factor_depth > 0) {
    params.factors = EncodeChunkMap(args.factors, desc.factor_rows, desc.factor_cols,
                                    desc.factor_cols, std::min(64, features / config.cluster));
    params.inner = EncodeChunkMap(args.inner, desc.tokens, desc.inner_width, args.inner_stride, 256);
  }
  params.output = store_map(args.output, args.output_stride);
  const auto operand_map = [&](const __nv_bfloat16* data, int64_t stride) {
    return EncodeChunkMap(data, desc.tokens, desc.output_width(), stride, store_tokens);
  };
  if (HasOperand(desc.finish)) params.operand = operand_map(args.operand, args.operand_stride);
  if (StoresPerChunk(desc.finish) == 2) params.beside = store_map(args.beside, args.beside_stride);
  if (HasCodes(desc.finish)) {
    params.codes = EncodeByteMap(args.codes, desc.tokens, desc.output_width(), args.codes_stride,
                                 /*box_rows=*/256);
  }
  params.bias = args.bias;
  params.sums = args.sums;
  params.features = static_cast<int32_t>(desc.output_width());
  params.tokens = static_cast<int32_t>(desc.tokens);
  params.steps = args.steps;
  params.tiles = args.tiles;
  params.worker_begin = args.worker_begin;
  const int workers = config.tiling.workers;
  switch (desc.finish) {
    case SpmmFinish::kStore:
      return desc.transposed ? LaunchSpmmTransposedStore(features, config.cluster, config.deep_ring,
                                                         params, workers, stream)
                             : LaunchSpmmStore(features, config.cluster, config.deep_ring, params,
                                               workers, stream);
    case SpmmFinish::kResidual:
      CHECK(!desc.transposed);
      return LaunchSpmmResidual(features, config.cluster, params, workers, stream);
    case SpmmFinish::kGelu:
      CHECK(!desc.transposed);
      return LaunchSpmmGelu(features, config.cluster, config.deep_ring, params, workers, stream);
    case SpmmFinish::kSwiGlu:
      CHECK(!desc.transposed);
      params.beside = EncodeStoreMap(args.beside, desc.tokens, desc.output_width() / 2,
                                     args.beside_stride, store_tokens);
      return LaunchSpmmSwiGlu(features, config.cluster, params, workers, stream);
    case SpmmFinish::kGeluBackward:
      CHECK(desc.transposed && args.bias == nullptr);
      return LaunchSpmmTransposedGeluBackward(features, config.cluster, params, workers, stream);
    case SpmmFinish::kSwiGluBackward:
      CHECK(desc.transposed && args.bias == nullptr);
      params.up = operand_map(args.up, args.up_stride);
      return LaunchSpmmTransposedSwiGluBackward(features, config.cluster, params, workers, stream);
    case SpmmFinish::kGeluCode:
      CHECK(!desc.transposed);
      return LaunchSpmmGeluCode(features, config.cluster, params, workers, stream);
    case SpmmFinish::kGeluCodeBackward:
      CHECK(desc.transposed && args.bias == nullptr);
      return LaunchSpmmTransposedGeluCodeBackward(features, config.cluster, params, workers,
                                                  stream);
  }
}

}  // namespace filigree

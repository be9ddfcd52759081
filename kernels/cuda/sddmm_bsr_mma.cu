// SddmmMmaKernel: dW = dY^T X on a group of neighbouring blocks of one block row, over a range of
// tokens, as D = A B with A = dY^T (M = the row's outputs) and B = X (N = the group's inputs).
//
// The blocks of a group share their slice of dY; their columns of X need not be neighbours, since a
// chunk of 16 bytes lies in one block. A chunk's column is its thread's for the whole loop.
// Grid: (groups, token ranges): CTAs that run at once sweep the same tokens, so that dY and X come
//   from device memory about once. Block: 128 threads, each warp up to 64 x 64.
// Shared memory: three stages of {dY 32 x kRows, X 32 x kN}.
// Bytes from L2 per stage: 64 * (kRows + kN); FLOPs: 64 * kRows * kN.
//
// One range writes the gradient itself. Several write fp32 partial gradients [range][stored], which
// SddmmSumKernel adds in order.
#include <algorithm>
#include <bit>

#include "kernels/base/math.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/mma_pipeline.cuh"
#include "kernels/cuda/sddmm_bsr_mma.h"

namespace filigree {
namespace {

using namespace mma;  // NOLINT: device primitives, file-local

constexpr int GroupWidth(int block_rows) { return block_rows == 128 ? 128 : 256; }

template <int kRows>
using SddmmTileOf = CtaTile < kRows,
      GroupWidth(kRows), kRows<64 ? kRows : 64, 64, true, true>;

struct SddmmParams {
  SddmmMmaArgs args;
  int64_t tokens;
  int64_t range_tokens;  // a multiple of kStepDepth
  int64_t stored;
  int out_features, in_features, block_rows_count, block_count;
  int width_shift;  // log2 of a block's width
  int group_shift;  // log2 of a group's blocks
  bool add, bf16;   // how `gradient` is written
};

// The blocks of a CTA.
struct Group {
  int row, begin, count;  // block row; first stored block; how many, perhaps none
};

__device__ __forceinline__ Group FindGroup(const SddmmParams& params) {
  const int* offsets = params.args.row_offsets;
  const int index = static_cast<int>(blockIdx.x);
  const int row = RowOfGroup(offsets, params.block_rows_count, index, params.group_shift);
  const int row_begin = offsets[row], row_end = offsets[row + 1];
  const int group = index - FirstGroupOfRow(row, row_begin, params.group_shift);
  const int begin = row_begin + (group << params.group_shift);
  return {row, begin, min(row_end - begin, 1 << params.group_shift)};
}

// A thread's share of one operand's copies: a fixed chunk of every kRowsAPass-th row (token).
template <class Operand>
class ColumnCopies {
 public:
  // The chunk of the operand's tile that this thread copies.
  static __device__ __forceinline__ int Chunk() { return threadIdx.x % Operand::kRowChunks; }

  // `column` is where the chunk begins in the rows of `matrix`; negative: it is filled with zeros.
  __device__ __forceinline__ ColumnCopies(const __nv_bfloat16* matrix, int64_t stride, int width,
                                          int column, int64_t token)
      : bytes_(column >= 0 && column < width ? kChunkBytes : 0),
        source_(matrix + (token + Row()) * stride + max(column, 0)),
        stride_(stride) {}

  // `left`: tokens from the stage's first to the end of the range.
  __device__ __forceinline__ void Load(uint32_t tile, int left) {
    if (Operand::kChunks < kThreads && threadIdx.x >= Operand::kChunks) return;
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const int row = Row() + i * kRowsAPass;
      CopyChunk(tile + TileOffset<Operand::kRowChunks>(row, Chunk()),
                source_ + i * kRowsAPass * stride_, row < left ? bytes_ : 0);
    }
    source_ += kStepDepth * stride_;
  }

 private:
  static constexpr int kRowsAPass = kThreads / Operand::kRowChunks;
  static constexpr int kPasses = kStepDepth / kRowsAPass > 0 ? kStepDepth / kRowsAPass : 1;
  static __device__ __forceinline__ int Row() { return threadIdx.x / Operand::kRowChunks; }

  const int bytes_;
  const __nv_bfloat16* source_;
  const int64_t stride_;
};

template <int kRows>
class SddmmLoader {
 public:
  using Tile = SddmmTileOf<kRows>;

  __device__ __forceinline__ SddmmLoader(const SddmmParams& params, const Group& group,
                                         int64_t token, int left)
      : output_grad_(params.args.output_grad, params.args.output_grad_stride, params.out_features,
                     group.row * kRows + decltype(output_grad_)::Chunk() * kChunkElements, token),
        input_(params.args.input, params.args.input_stride, params.in_features,
               InputColumn(params, group, decltype(input_)::Chunk() * kChunkElements), token),
        left_(left) {}

  __device__ __forceinline__ void Load(uint32_t stage) {
    output_grad_.Load(stage, left_);
    input_.Load(stage + Tile::A::kBytes, left_);
    left_ -= kStepDepth;
  }

 private:
  // Where column `n` of the group lies in X; -1 beyond its last block.
  static __device__ __forceinline__ int InputColumn(const SddmmParams& params, const Group& group,
                                                    int n) {
    const int block = n >> params.width_shift;
    if (block >= group.count) return -1;
    return (__ldg(params.args.columns + group.begin + block) << params.width_shift) +
           (n & ((1 << params.width_shift) - 1));
  }

  ColumnCopies<typename Tile::A> output_grad_;
  ColumnCopies<typename Tile::B> input_;
  int left_;
};

// Writes a pair of neighbouring gradients, or adds to them.
__device__ __forceinline__ void WritePair(const SddmmParams& params, int64_t index, float2 value) {
  if (params.bf16) {
    auto* place = reinterpret_cast<__nv_bfloat162*>(
        static_cast<__nv_bfloat16*>(params.args.gradient) + index);
    const float2 old = params.add ? __bfloat1622float2(*place) : make_float2(0, 0);
    *place = __floats2bfloat162_rn(old.x + value.x, old.y + value.y);
  } else {
    auto* place = reinterpret_cast<float2*>(static_cast<float*>(params.args.gradient) + index);
    const float2 old = params.add ? *place : make_float2(0, 0);
    *place = make_float2(old.x + value.x, old.y + value.y);
  }
}

template <class Tile>
__device__ __forceinline__ void WriteBlocks(const SddmmParams& params, const Group& group,
                                            const typename Tile::Accumulators& acc) {
  const Cell cell = AccumulatorCell(threadIdx.x % 32, 0);
  const int64_t range = static_cast<int64_t>(blockIdx.y) * params.stored;
#pragma unroll
  for (int j = 0; j < Tile::kNTiles; ++j) {
    const int n = Tile::WarpN() + j * 8 + cell.column;
    const int block = n >> params.width_shift;
    if (block >= group.count) break;
    const int inside = n & ((1 << params.width_shift) - 1);
    const int column =
        (__ldg(params.args.columns + group.begin + block) << params.width_shift) + inside;
    const int64_t first =
        range + ((static_cast<int64_t>(group.begin + block) * Tile::kM) << params.width_shift) +
        inside;
#pragma unroll
    for (int i = 0; i < Tile::kMTiles * 2; ++i) {
      const int m = Tile::WarpM() + i * 8 + cell.row;
      // Cells outside the weight get zero whatever the operands hold, infinities included.
      const bool in_weight =
          group.row * Tile::kM + m < params.out_features && column < params.in_features;
      const float* pair = &acc[i / 2][j][i % 2 * 2];
      WritePair(params, first + (m << params.width_shift),
                in_weight ? make_float2(pair[0], pair[1]) : make_float2(0, 0));
    }
  }
}

template <int kRows>
__global__ void __launch_bounds__(kThreads, 2)
    SddmmMmaKernel(const __grid_constant__ SddmmParams params) {
  using Tile = SddmmTileOf<kRows>;
  extern __shared__ __align__(128) uint8_t shared[];
  const Group group = FindGroup(params);
  if (group.count <= 0) return;
  const int64_t token = static_cast<int64_t>(blockIdx.y) * params.range_tokens;
  const int left = static_cast<int>(min(params.range_tokens, params.tokens - token));
  SddmmLoader<kRows> loader(params, group, token, left);
  typename Tile::Accumulators acc;
  Accumulate<Tile>(acc, SharedAddress(shared), (left + kStepDepth - 1) / kStepDepth, loader);
  WriteBlocks<Tile>(params, group, acc);
}

// gradient (+)= the partials [ranges][stored], in order. A thread: 4 values.
template <typename Gradient>
__global__ void SddmmSumKernel(const float4* partials, int ranges, int64_t quads, bool add,
                               Gradient* gradient) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= quads) return;
  float sum[4] = {0, 0, 0, 0};
  for (int r = 0; r < ranges; ++r) {
    const float4 part = __ldg(partials + r * quads + index);
    sum[0] += part.x;
    sum[1] += part.y;
    sum[2] += part.z;
    sum[3] += part.w;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    Gradient& place = gradient[index * 4 + i];
    place = static_cast<Gradient>((add ? static_cast<float>(place) : 0.0f) + sum[i]);
  }
}

template <typename Gradient>
void LaunchSum(const SddmmParams& partial, int ranges, const SddmmMmaArgs& args,
               cudaStream_t stream) {
  constexpr int kSumThreads = 256;
  const int64_t quads = partial.stored / 4;
  SddmmSumKernel<<<static_cast<unsigned>(CeilDiv(quads, kSumThreads)), kSumThreads, 0, stream>>>(
      reinterpret_cast<const float4*>(args.workspace), ranges, quads, args.accumulate,
      static_cast<Gradient*>(args.gradient));
  CUDA_CHECK(cudaGetLastError());
}

template <int kRows>
void LaunchRanges(const SddmmParams& params, int ranges, cudaStream_t stream) {
  constexpr int kSharedBytes = SddmmTileOf<kRows>::kRingBytes;
  static const bool configured = [] {
    CUDA_CHECK(cudaFuncSetAttribute(SddmmMmaKernel<kRows>,
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
    return true;
  }();
  static_cast<void>(configured);
  const int groups =
      GroupIndexCount(params.block_rows_count, params.block_count, params.group_shift);
  SddmmMmaKernel<kRows><<<dim3(groups, ranges), kThreads, kSharedBytes, stream>>>(params);
  CUDA_CHECK(cudaGetLastError());
}

void LaunchRows(int rows, const SddmmParams& params, int ranges, cudaStream_t stream) {
  switch (rows) {
    case 16:
      return LaunchRanges<16>(params, ranges, stream);
    case 32:
      return LaunchRanges<32>(params, ranges, stream);
    case 64:
      return LaunchRanges<64>(params, ranges, stream);
    case 128:
      return LaunchRanges<128>(params, ranges, stream);
    default:
      CHECK(false) << "block side of " << rows;
  }
}

int64_t Stored(const SddmmMmaDesc& desc) {
  return desc.block_count * desc.block.rows * desc.block.cols;
}

// Tokens of a range when they are cut into about `splits`: whole steps.
int64_t RangeTokens(const SddmmMmaDesc& desc, int splits) {
  return AlignUp(CeilDiv(desc.tokens, splits), kStepDepth);
}

}  // namespace

bool CanImplementSddmmBsrMma(const SddmmMmaDesc& desc) {
  return IsBlockSide(desc.block.rows) && IsBlockSide(desc.block.cols) && desc.tokens > 0 &&
         desc.out_features % kChunkElements == 0 && desc.in_features % kChunkElements == 0 &&
         (desc.gradient_dtype == DType::kF32 || desc.gradient_dtype == DType::kBF16);
}

int SddmmMmaSplits(const SddmmMmaDesc& desc, int multiprocessors) {
  if (desc.block_count == 0) return 1;
  const int64_t group_blocks = std::max(1, GroupWidth(desc.block.rows) / desc.block.cols);
  // Half a group is left over in a block row, on average.
  const int64_t rows = group_blocks == 1 ? 0 : CeilDiv(desc.out_features, desc.block.rows);
  const int64_t groups =
      std::max(CeilDiv(desc.block_count, group_blocks),
               std::min(desc.block_count, desc.block_count / group_blocks + rows / 2));
  const int64_t at_once = int64_t{2} * multiprocessors;
  // Time in steps: the waves of CTAs times their length; a split adds the writing and adding of a
  // partial tile, about as many bytes as 16 steps read.
  constexpr int64_t kPartialSteps = 16, kStartSteps = 4;
  constexpr int kMostSplits = 64;
  int best = 1;
  int64_t best_time = 0;
  for (int splits = 1; splits <= kMostSplits; ++splits) {
    const int64_t steps = RangeTokens(desc, splits) / kStepDepth;
    if (CeilDiv(desc.tokens, steps * kStepDepth) != splits) continue;  // the last would be empty
    const int64_t time = CeilDiv(groups * splits, at_once) *
                         (steps + kStartSteps + (splits > 1 ? kPartialSteps : 0));
    if (splits == 1 || time < best_time) best = splits, best_time = time;
  }
  return best;
}

size_t SddmmMmaWorkspaceBytes(const SddmmMmaDesc& desc, int multiprocessors) {
  const int splits = SddmmMmaSplits(desc, multiprocessors);
  return splits == 1 ? 0 : static_cast<size_t>(splits) * Stored(desc) * sizeof(float);
}

void LaunchSddmmBsrMma(const SddmmMmaDesc& desc, int multiprocessors, const SddmmMmaArgs& args,
                       cudaStream_t stream) {
  CHECK(CanImplementSddmmBsrMma(desc));
  if (desc.block_count == 0) return;
  const int splits = SddmmMmaSplits(desc, multiprocessors);
  const int group_blocks = std::max(1, GroupWidth(desc.block.rows) / desc.block.cols);
  SddmmParams params{
      .args = args,
      .tokens = desc.tokens,
      .range_tokens = RangeTokens(desc, splits),
      .stored = Stored(desc),
      .out_features = static_cast<int>(desc.out_features),
      .in_features = static_cast<int>(desc.in_features),
      .block_rows_count = static_cast<int>(CeilDiv(desc.out_features, desc.block.rows)),
      .block_count = static_cast<int>(desc.block_count),
      .width_shift = SliceShift(desc.block.cols) + 4,
      .group_shift = std::countr_zero(static_cast<unsigned>(group_blocks)),
      .add = args.accumulate,
      .bf16 = desc.gradient_dtype == DType::kBF16};
  if (splits > 1) {
    params.args.gradient = args.workspace;
    params.add = params.bf16 = false;
  }
  LaunchRows(desc.block.rows, params, splits, stream);
  if (splits == 1) return;
  desc.gradient_dtype == DType::kBF16 ? LaunchSum<__nv_bfloat16>(params, splits, args, stream)
                                      : LaunchSum<float>(params, splits, args, stream);
}

}  // namespace filigree

// SpmmMmaKernel: a tile of kTokens tokens by one block's width of output features, as
// D = A B with A = rows of the input (M = tokens) and B = the stored blocks (N = features).
//
// The blocks of an output block column are one long reduction, cut into slices 16 deep; a stage
// takes two, of one block or of two neighbours in the list, so every block depth runs the same
// loop. Grid: (output block columns, token tiles): CTAs that run at once share their tokens, which
// stay in
//   the L2, and read the whole weight. Block: 128 threads, each warp up to 64 x 64.
// Shared memory: three stages of {input kTokens x 32, blocks 32 x kFeatures}; then the same bytes
// turn
//   the result into rows of 16-byte chunks.
// Bytes from L2 per stage: 64 * (kTokens + kFeatures); FLOPs: 64 * kTokens * kFeatures.
#include "kernels/base/math.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/mma_pipeline.cuh"
#include "kernels/cuda/spmm_bsr_mma.h"

namespace filigree {
namespace {

using namespace mma;  // NOLINT: device primitives, file-local

// 64 x 64 a warp where the features allow: the shape that reads the least shared memory a product.
template <bool kTransposed, int kFeatures>
using SpmmTileOf = CtaTile < kFeatures == 128 ? 128 : 256,
      kFeatures, 64, kFeatures<64 ? kFeatures : 64, false, kTransposed>;

struct SpmmParams {
  SpmmMmaArgs args;
  int64_t tokens;
  int input_width, output_width;
  int depth_shift;  // log2 of a block's slices along the reduction
};

__device__ __forceinline__ int Clamp16(int bytes) { return min(max(bytes, 0), kChunkBytes); }

// Copies a CTA's stages, one a call.
template <bool kTransposed, int kFeatures>
class SpmmLoader {
 public:
  using Tile = SpmmTileOf<kTransposed, kFeatures>;

  __device__ __forceinline__ SpmmLoader(const SpmmParams& params, int64_t token_begin)
      : params_(params),
        begin_(__ldg(params.args.offsets + blockIdx.x)),
        slices_((__ldg(params.args.offsets + blockIdx.x + 1) - begin_) << params.depth_shift),
        rows_left_(static_cast<int>(min(params.tokens - token_begin, int64_t{Tile::kM})) -
                   kInputRow()),
        input_(params.args.input + (token_begin + kInputRow()) * params.args.input_stride) {
    Fetch();
  }

  __device__ __forceinline__ int steps() const { return (slices_ + 1) / 2; }

  __device__ __forceinline__ void Load(uint32_t stage) {
    LoadInput(stage);
    LoadBlocks(stage + Tile::A::kBytes);
    next_slice_ += 2;
    Fetch();
  }

 private:
  using A = typename Tile::A;
  using B = typename Tile::B;
  static constexpr int kInputRowsAPass = kThreads / A::kRowChunks;
  static __device__ __forceinline__ int kInputRow() { return threadIdx.x / A::kRowChunks; }

  // Looks up the next stage's two slices, a stage before they are used. Beyond the end: no column.
  __device__ __forceinline__ void Fetch() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const SlicePosition position = PositionOfSlice(next_slice_ + i, params_.depth_shift);
      exists_[i] = next_slice_ + i < slices_;
      const int entry = begin_ + (exists_[i] ? position.entry : 0);
      column_[i] = exists_[i] ? __ldg(params_.args.panels + entry) * Depth() + position.inside
                              : params_.input_width;
      slot_[i] =
          params_.args.slots == nullptr || !exists_[i] ? entry : __ldg(params_.args.slots + entry);
      inside_[i] = position.inside;
    }
  }

  __device__ __forceinline__ int Depth() const { return kSliceDepth << params_.depth_shift; }

  __device__ __forceinline__ void LoadInput(uint32_t tile) {
    const int chunk = threadIdx.x % A::kRowChunks;
    const int column = (chunk < 2 ? column_[0] : column_[1]) + chunk % 2 * kChunkElements;
    const int bytes = Clamp16((params_.input_width - column) * 2);
    const __nv_bfloat16* source = input_ + column;
    const int64_t pass = kInputRowsAPass * params_.args.input_stride;
    const uint32_t target = tile + TileOffset<A::kRowChunks>(kInputRow(), chunk);
#pragma unroll
    for (int i = 0; i < A::kRows / kInputRowsAPass; ++i) {
      const int row = i * kInputRowsAPass;
      CopyChunk(target + row * A::kRowChunks * kChunkBytes, source, row < rows_left_ ? bytes : 0);
      source += pass;
    }
  }

  __device__ __forceinline__ void LoadBlocks(uint32_t tile) {
    constexpr int kRowsAPass = kThreads / B::kRowChunks;
    constexpr int kPasses = B::kRows / kRowsAPass > 0 ? B::kRows / kRowsAPass : 1;
    if (B::kChunks < kThreads && threadIdx.x >= B::kChunks) return;
    const int chunk = threadIdx.x % B::kRowChunks;
    const int64_t block = static_cast<int64_t>(kFeatures) * Depth();
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const int row = threadIdx.x / B::kRowChunks + i * kRowsAPass;
      // Rows along the reduction run through both slices, else the chunks of a row do.
      const bool second = kTransposed ? row >= kSliceDepth : chunk >= 2;
      const int inside = second ? inside_[1] : inside_[0];
      const int cell = kTransposed
                           ? (inside + row % kSliceDepth) * kFeatures + chunk * kChunkElements
                           : row * Depth() + inside + chunk % 2 * kChunkElements;
      const __nv_bfloat16* source =
          params_.args.values + (second ? slot_[1] : slot_[0]) * block + cell;
      CopyChunk(tile + TileOffset<B::kRowChunks>(row, chunk), source,
                (second ? exists_[1] : exists_[0]) ? kChunkBytes : 0);
    }
  }

  const SpmmParams& params_;
  const int begin_, slices_;
  const int rows_left_;  // tokens from this thread's first row to the end
  const __nv_bfloat16* const input_;
  int next_slice_ = 0;
  int column_[2], inside_[2];
  int64_t slot_[2];
  bool exists_[2];
};

__device__ __forceinline__ float2 ToFloats(const uint8_t* pair) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(pair));
}

// A warp's rows of the result in shared memory, and their places in a matrix [tokens,
// output_width].
template <class Tile>
struct WarpRows {
  static constexpr int kRowChunks = Tile::kWarpN / kChunkElements;
  static constexpr int kBytes = Tile::kWarpM * kRowChunks * kChunkBytes;

  uint8_t* shared;
  int64_t token;  // first
  int feature;    // first
  int rows;       // inside the matrix
  int width;      // of the matrix

  // Calls copy(shared chunk, row, feature) for each chunk inside the matrix, lanes along the rows.
  template <typename Copy>
  __device__ __forceinline__ void ForEachChunk(const Copy& copy) const {
    const int lane = threadIdx.x % 32;
    const int column = feature + lane % kRowChunks * kChunkElements;
    if (column >= width) return;
#pragma unroll 4
    for (int row = lane / kRowChunks; row < rows; row += 32 / kRowChunks) {
      copy(shared + TileOffset<kRowChunks>(row, lane % kRowChunks), token + row, column);
    }
  }
};

// result = acc + bias (+ what the shared rows hold), rounded, into the shared rows.
template <class Tile>
__device__ __forceinline__ void RoundInto(const WarpRows<Tile>& to,
                                          const typename Tile::Accumulators& acc,
                                          const __nv_bfloat16* bias, bool add) {
  const Cell cell = AccumulatorCell(threadIdx.x % 32, 0);
#pragma unroll
  for (int j = 0; j < Tile::kNTiles; ++j) {
    const int feature = to.feature + j * 8 + cell.column;
    float2 shift = make_float2(0, 0);
    if (bias != nullptr && feature < to.width) {
      shift = ToFloats(reinterpret_cast<const uint8_t*>(bias + feature));
    }
#pragma unroll
    for (int i = 0; i < Tile::kMTiles * 2; ++i) {
      uint8_t* place =
          to.shared + TileOffset<WarpRows<Tile>::kRowChunks>(i * 8 + cell.row, j) + cell.column * 2;
      const float* pair = &acc[i / 2][j][i % 2 * 2];
      const float2 old = add ? ToFloats(place) : make_float2(0, 0);
      *reinterpret_cast<__nv_bfloat162*>(place) =
          __floats2bfloat162_rn(pair[0] + shift.x + old.x, pair[1] + shift.y + old.y);
    }
  }
}

template <class Tile>
__device__ __forceinline__ void Finish(const SpmmParams& params,
                                       const typename Tile::Accumulators& acc, uint8_t* shared,
                                       int64_t token_begin) {
  const int64_t token = token_begin + Tile::WarpM();
  const int64_t left = params.tokens - token;
  const WarpRows<Tile> rows{.shared = shared + threadIdx.x / 32 * WarpRows<Tile>::kBytes,
                            .token = token,
                            .feature = static_cast<int>(blockIdx.x) * Tile::kN + Tile::WarpN(),
                            .rows = static_cast<int>(min(left, int64_t{Tile::kWarpM})),
                            .width = params.output_width};
  const SpmmMmaArgs& args = params.args;
  if (args.addend != nullptr) {
    rows.ForEachChunk([&](uint8_t* chunk, int64_t row, int column) {
      *reinterpret_cast<int4*>(chunk) =
          *reinterpret_cast<const int4*>(args.addend + row * args.addend_stride + column);
    });
    __syncwarp();
  }
  RoundInto<Tile>(rows, acc, args.bias, args.addend != nullptr);
  __syncwarp();
  rows.ForEachChunk([&](const uint8_t* chunk, int64_t row, int column) {
    *reinterpret_cast<int4*>(args.output + row * args.output_stride + column) =
        *reinterpret_cast<const int4*>(chunk);
  });
}

template <bool kTransposed, int kFeatures>
__global__ void __launch_bounds__(kThreads, 2)
    SpmmMmaKernel(const __grid_constant__ SpmmParams params) {
  using Tile = SpmmTileOf<kTransposed, kFeatures>;
  static_assert(4 * WarpRows<Tile>::kBytes <= Tile::kRingBytes);
  extern __shared__ __align__(128) uint8_t shared[];
  const int64_t token_begin = static_cast<int64_t>(blockIdx.y) * Tile::kM;
  SpmmLoader<kTransposed, kFeatures> loader(params, token_begin);
  typename Tile::Accumulators acc;
  Accumulate<Tile>(acc, SharedAddress(shared), loader.steps(), loader);
  Finish<Tile>(params, acc, shared, token_begin);
}

template <bool kTransposed, int kFeatures>
void Launch(const SpmmParams& params, cudaStream_t stream) {
  using Tile = SpmmTileOf<kTransposed, kFeatures>;
  const auto kernel = SpmmMmaKernel<kTransposed, kFeatures>;
  static const bool configured = [&] {
    CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    Tile::kRingBytes));
    return true;
  }();
  static_cast<void>(configured);
  const dim3 grid(static_cast<unsigned>(CeilDiv(params.output_width, kFeatures)),
                  static_cast<unsigned>(CeilDiv(params.tokens, Tile::kM)));
  kernel<<<grid, kThreads, Tile::kRingBytes, stream>>>(params);
  CUDA_CHECK(cudaGetLastError());
}

template <bool kTransposed>
void LaunchWidth(int features, const SpmmParams& params, cudaStream_t stream) {
  switch (features) {
    case 16:
      return Launch<kTransposed, 16>(params, stream);
    case 32:
      return Launch<kTransposed, 32>(params, stream);
    case 64:
      return Launch<kTransposed, 64>(params, stream);
    case 128:
      return Launch<kTransposed, 128>(params, stream);
    default:
      CHECK(false) << "block side of " << features;
  }
}

}  // namespace

bool CanImplementSpmmBsrMma(const SpmmMmaDesc& desc) {
  constexpr int64_t kMaxTokens = 65535 * 128;  // the grid's second dimension
  return IsBlockSide(desc.block.rows) && IsBlockSide(desc.block.cols) && desc.tokens > 0 &&
         desc.tokens <= kMaxTokens && desc.out_features % kChunkElements == 0 &&
         desc.in_features % kChunkElements == 0;
}

void LaunchSpmmBsrMma(const SpmmMmaDesc& desc, const SpmmMmaArgs& args, cudaStream_t stream) {
  CHECK(CanImplementSpmmBsrMma(desc));
  SpmmParams params{.args = args,
                    .tokens = desc.tokens,
                    .input_width = static_cast<int>(desc.input_width()),
                    .output_width = static_cast<int>(desc.output_width()),
                    .depth_shift = SliceShift(desc.transposed ? desc.block.rows : desc.block.cols)};
  const int features = desc.transposed ? desc.block.cols : desc.block.rows;
  desc.transposed ? LaunchWidth<true>(features, params, stream)
                  : LaunchWidth<false>(features, params, stream);
}

}  // namespace filigree

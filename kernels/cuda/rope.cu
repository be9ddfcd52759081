// RopeKernel: rotate-half position encoding, in place on a strided [T, heads * E] matrix.
// Grid: ceil(T / rows of a block); block: 256 threads, for as many rows as have about 256 pairs of
// (position, frequency). First a thread takes the sine and cosine of one pair, then, for all heads,
// a pack of the first half of a head with its partners in the second. Bytes: 4 an element.
//
// The angle is reduced to a fraction of a turn in double precision, so its error does not grow with
// the position: 2^-24 of a turn at any.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/base/math.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/device_rows.h"
#include "kernels/cuda/vectors.cuh"

namespace filigree {
namespace {

constexpr int kThreads = 256;

struct RopeParams {
  Rows<bf16> x;
  int64_t rows, seq_len;
  int block_rows, heads, half;
  double log2_theta, log2_turn;  // of theta and of 2 pi
  float direction;               // -1 turns back
};

// Cosine and sine of row `row`'s angle at frequency j.
__device__ __forceinline__ float2 TurnOf(const RopeParams& p, int64_t row, int j) {
  const double turns =
      static_cast<double>(row % p.seq_len) * exp2(-p.log2_theta * j / p.half - p.log2_turn);
  float sine, cosine;
  sincospif(static_cast<float>(2.0 * (turns - rint(turns))), &sine, &cosine);
  return make_float2(cosine, sine * p.direction);
}

template <int kVec>
__device__ __forceinline__ void RotatePack(bf16* first, bf16* second, const float2* turns) {
  float a[kVec], b[kVec];
  const Bf16Pack<kVec> raw_a = Load<kVec>(first), raw_b = Load<kVec>(second);
  Unpack(raw_a, a);
  Unpack(raw_b, b);
#pragma unroll
  for (int k = 0; k < kVec; ++k) {
    const float2 turn = turns[k];
    const float kept = a[k];
    a[k] = kept * turn.x - b[k] * turn.y;
    b[k] = b[k] * turn.x + kept * turn.y;
  }
  Store<kVec>(first, Rounded(a));
  Store<kVec>(second, Rounded(b));
}

template <int kVec>
__global__ void __launch_bounds__(kThreads) RopeKernel(RopeParams p) {
  extern __shared__ float2 turns[];  // [block_rows, half]
  const int64_t first_row = int64_t{blockIdx.x} * p.block_rows;
  const int rows = static_cast<int>(min(int64_t{p.block_rows}, p.rows - first_row));
  for (int i = threadIdx.x; i < rows * p.half; i += kThreads) {
    turns[i] = TurnOf(p, first_row + i / p.half, i % p.half);
  }
  __syncthreads();
  const int head_packs = p.half / kVec, row_packs = head_packs * p.heads;
  for (int i = threadIdx.x; i < rows * row_packs; i += kThreads) {
    const int row = i / row_packs, head = i % row_packs / head_packs;
    const int j = i % head_packs * kVec;
    bf16* first = p.x.row(first_row + row) + int64_t{head} * 2 * p.half + j;
    RotatePack<kVec>(first, first + p.half, turns + row * p.half + j);
  }
}

}  // namespace

void CudaBackend::Rope(const RopeArgs& args, Stream& stream) {
  const int64_t rows = args.x.rows(), cols = args.x.cols();
  CHECK(args.seq_len >= 1) << "sequences of " << args.seq_len;
  CHECK(args.heads >= 1 && cols % (2 * args.heads) == 0)
      << cols << " columns in " << args.heads << " heads of even size";
  const int64_t half = cols / args.heads / 2;
  if (rows == 0 || half == 0) return;
  const int64_t block_rows = std::max<int64_t>(1, kThreads / half);
  const size_t shared_bytes = block_rows * half * sizeof(float2);
  CHECK_LE(shared_bytes, size_t{48} << 10) << "heads of " << 2 * half;
  const RopeParams p = {.x = AsRows<bf16>(args.x, rows, cols, "x"),
                        .rows = rows,
                        .seq_len = args.seq_len,
                        .block_rows = static_cast<int>(block_rows),
                        .heads = static_cast<int>(args.heads),
                        .half = static_cast<int>(half),
                        .log2_theta = std::log2(args.theta),
                        .log2_turn = std::log2(2 * std::numbers::pi),
                        .direction = args.inverse ? -1.0f : 1.0f};
  const int64_t blocks = CeilDiv(rows, block_rows);
  if (TakesVectors(args.x) && half % 8 == 0) {
    RopeKernel<8><<<blocks, kThreads, shared_bytes, NativeStream(stream)>>>(p);
  } else {
    RopeKernel<1><<<blocks, kThreads, shared_bytes, NativeStream(stream)>>>(p);
  }
  CUDA_CHECK(cudaGetLastError());
}

}  // namespace filigree

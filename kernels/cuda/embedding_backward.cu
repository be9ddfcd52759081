// SumRunsKernel, JoinRunsKernel, PositionGradOp: gradients of the token and position tables, in a
// fixed order and without atomics.
//
// Positions are sorted by token (token_sort.h), so that a token is a run. The sorted list is cut
// into chunks of equal length. A run within a chunk is summed in the order of its positions and
// added to its table row; of a run that crosses chunks, each chunk writes the sum of its part, and
// JoinRunsKernel adds the parts in order: however frequent a token, no block sums more than a
// chunk.
//
// Grid of both: (chunks, ceil(D / (128 * kVec))) blocks of 128 threads, each with kVec columns.
// Bytes: T * D * 2 read, 8 (or 4) an element of the distinct tokens' rows, and of runs that cross
// chunks 8 * D a chunk and part. Positions: T * D * 2 and 8 (or 4) an element of their table.
#include <algorithm>

#include "kernels/base/math.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_check.h"
#include "kernels/cuda/device_rows.h"
#include "kernels/cuda/map_rows.cuh"
#include "kernels/cuda/token_sort.h"
#include "kernels/cuda/vectors.cuh"

namespace filigree {
namespace {

constexpr int kThreads = 128;
constexpr int kBatch = 4;  // rows whose loads are in flight together
// Chunks are as short as parts of this size allow, within limits.
constexpr int64_t kPartBytes = 16 << 20;
constexpr int kMinChunk = 32, kMaxChunk = 4096;

template <typename Grad>
struct RunParams {
  SortedTokens sorted;
  int count, chunk, cols;
  Rows<const bf16> dout;
  Rows<Grad> dtable;
  // [chunks][2][cols]: of the run that began in an earlier chunk, and of the one that goes on into
  // the next and began here.
  float* parts;
};

template <int kVec>
__device__ __forceinline__ int ColumnOf() {
  return kVec * (blockIdx.y * kThreads + threadIdx.x);
}

template <int kVec, typename Grad>
__global__ void __launch_bounds__(kThreads) SumRunsKernel(RunParams<Grad> p) {
  extern __shared__ int32_t shared[];
  const int first = blockIdx.x * p.chunk, length = min(p.chunk, p.count - first);
  // tokens[i] for i in [-1, length]; -1, which is none, beyond the ends of the list.
  int32_t* tokens = shared + 1;
  int32_t* positions = shared + p.chunk + 2;
  for (int i = static_cast<int>(threadIdx.x) - 1; i <= length; i += kThreads) {
    const int at = first + i;
    tokens[i] = at >= 0 && at < p.count ? p.sorted.tokens[at] : -1;
    if (i >= 0 && i < length) positions[i] = p.sorted.positions[at];
  }
  __syncthreads();
  const int col = ColumnOf<kVec>();
  if (col >= p.cols) return;
  float* parts = p.parts + int64_t{blockIdx.x} * 2 * p.cols + col;
  const int32_t earlier = tokens[-1];
  float sum[kVec] = {};
  for (int begin = 0; begin < length; begin += kBatch) {
    Bf16Pack<kVec> rows[kBatch];
    float old[kBatch][kVec];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int i = begin + b;
      if (i >= length) continue;
      rows[b] = Load<kVec>(p.dout.row(positions[i]) + col);
      if (tokens[i] != tokens[i + 1] && tokens[i] != earlier) {
        LoadValues(p.dtable.row(tokens[i]) + col, old[b]);
      }
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int i = begin + b;
      if (i >= length) continue;
      float values[kVec];
      Unpack(rows[b], values);
#pragma unroll
      for (int k = 0; k < kVec; ++k) sum[k] += values[k];
      if (tokens[i] == tokens[i + 1]) continue;
      if (tokens[i] == earlier) {
        StoreValues(parts, sum);
      } else {
#pragma unroll
        for (int k = 0; k < kVec; ++k) old[b][k] += sum[k];
        StoreValues(p.dtable.row(tokens[i]) + col, old[b]);
      }
#pragma unroll
      for (int k = 0; k < kVec; ++k) sum[k] = 0;
    }
  }
  const int32_t last = tokens[length - 1];
  if (last == tokens[length]) StoreValues(last == earlier ? parts : parts + p.cols, sum);
}

template <int kVec, typename Grad>
__global__ void __launch_bounds__(kThreads) JoinRunsKernel(RunParams<Grad> p) {
  const int chunks = gridDim.x, chunk = blockIdx.x, next = (chunk + 1) * p.chunk;
  if (chunk + 1 == chunks) return;
  const int32_t token = p.sorted.tokens[next - 1];
  if (p.sorted.tokens[next] != token) return;
  if (chunk > 0 && p.sorted.tokens[chunk * p.chunk - 1] == token) return;  // began earlier
  // Parts of the run: those of the chunks after this one that begin with its token.
  int end = chunk + 1;
  for (int found = kThreads; found == kThreads; end += found) {
    const int candidate = end + static_cast<int>(threadIdx.x);
    found =
        __syncthreads_count(candidate < chunks && p.sorted.tokens[candidate * p.chunk] == token);
  }
  const int col = ColumnOf<kVec>();
  if (col >= p.cols) return;
  const float* parts = p.parts + col;
  float sum[kVec], total[kVec];
  LoadValues(parts + (int64_t{chunk} * 2 + 1) * p.cols, sum);
#pragma unroll 4
  for (int i = chunk + 1; i < end; ++i) {
    float part[kVec];
    LoadValues(parts + int64_t{i} * 2 * p.cols, part);
#pragma unroll
    for (int k = 0; k < kVec; ++k) sum[k] += part[k];
  }
  LoadValues(p.dtable.row(token) + col, total);
#pragma unroll
  for (int k = 0; k < kVec; ++k) total[k] += sum[k];
  StoreValues(p.dtable.row(token) + col, total);
}

// dpositions[p] += dout[p], dout[p + seq_len], ... in that order.
template <typename Grad>
struct PositionGradOp {
  Rows<const bf16> dout;
  Rows<Grad> dpositions;
  int64_t tokens, seq_len;

  template <int kVec>
  struct Inputs {
    float values[kVec];
  };
  template <int kVec>
  __device__ Inputs<kVec> Load(int64_t row, int64_t col) const {
    Inputs<kVec> in;
    LoadValues(dpositions.row(row) + col, in.values);
    return in;
  }
  template <int kVec>
  __device__ void Apply(int64_t row, int64_t col, const Inputs<kVec>& in) const {
    float sum[kVec] = {};
#pragma unroll 4
    for (int64_t token = row; token < tokens; token += seq_len) {
      float values[kVec];
      Unpack(filigree::Load<kVec>(dout.row(token) + col), values);
#pragma unroll
      for (int k = 0; k < kVec; ++k) sum[k] += values[k];
    }
#pragma unroll
    for (int k = 0; k < kVec; ++k) sum[k] += in.values[k];
    StoreValues(dpositions.row(row) + col, sum);
  }
};

int ChunkLength(int64_t count, int64_t cols) {
  const int64_t part = 2 * cols * static_cast<int64_t>(sizeof(float));
  const int64_t chunks = std::max<int64_t>(1, kPartBytes / part);
  return static_cast<int>(std::clamp<int64_t>(CeilDiv(count, chunks), kMinChunk, kMaxChunk));
}

template <int kVec, typename Grad>
void LaunchRuns(const RunParams<Grad>& p, cudaStream_t stream) {
  const dim3 grid(CeilDiv(p.count, p.chunk), CeilDiv(p.cols, kThreads * kVec));
  const size_t shared_bytes = (2 * p.chunk + 2) * sizeof(int32_t);
  SumRunsKernel<kVec, Grad><<<grid, kThreads, shared_bytes, stream>>>(p);
  CUDA_CHECK(cudaGetLastError());
  JoinRunsKernel<kVec, Grad><<<grid, kThreads, 0, stream>>>(p);
  CUDA_CHECK(cudaGetLastError());
}

// `memory` holds the parts, then what the sort needs.
template <typename Grad>
void Backward(const EmbeddingBackwardArgs& args, int chunk, size_t part_bytes, std::byte* memory,
              cudaStream_t stream) {
  const int64_t count = args.dout.rows(), cols = args.dout.cols();
  RunParams<Grad> p = {};
  p.dtable = AsRows<Grad>(args.dtable, args.dtable.rows(), cols, "dtable");
  p.dout = AsRows<bf16>(args.dout, count, cols, "dout");
  p.sorted = SortTokens(AsElements<int32_t>(args.tokens, count, "tokens"), count,
                        args.dtable.rows(), memory + part_bytes, stream);
  p.parts = reinterpret_cast<float*>(memory);
  p.count = static_cast<int>(count), p.cols = static_cast<int>(cols), p.chunk = chunk;
  if (TakeVectors(args.dout, args.dtable)) {
    LaunchRuns<8>(p, stream);
  } else {
    LaunchRuns<1>(p, stream);
  }
  if (args.dpositions.empty()) return;
  CHECK(args.seq_len >= 1 && args.seq_len <= args.dpositions.rows())
      << "sequences of " << args.seq_len << " with " << args.dpositions.rows() << " positions";
  const PositionGradOp<Grad> op{
      p.dout, AsRows<Grad>(args.dpositions, args.dpositions.rows(), cols, "dpositions"), count,
      args.seq_len};
  MapRows(op, std::min(count, args.seq_len), cols, TakeVectors(args.dout, args.dpositions), stream);
}

}  // namespace

void CudaBackend::EmbeddingBackward(const EmbeddingBackwardArgs& args, Stream& stream) {
  const int64_t count = args.dout.rows(), cols = args.dout.cols();
  if (args.dout.empty()) return;
  const int chunk = ChunkLength(count, cols);
  const size_t part_bytes =
      AlignUp(CeilDiv(count, chunk) * 2 * cols * static_cast<int64_t>(sizeof(float)), 256);
  std::byte* memory = Workspace(part_bytes + SortTokensBytes(count, args.dtable.rows()));
  if (args.dtable.dtype() == DType::kF32) {
    Backward<float>(args, chunk, part_bytes, memory, NativeStream(stream));
  } else {
    Backward<bf16>(args, chunk, part_bytes, memory, NativeStream(stream));
  }
}

}  // namespace filigree

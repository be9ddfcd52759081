// Embedding: out[t] = table[tokens[t]] + positions[t % seq_len].
// Grid and block: map_rows.cuh. Bytes: T * D * 2 written, as much read for the table's rows and
// again for positions (these mostly from L2), 4 a token.
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device_rows.h"
#include "kernels/cuda/map_rows.cuh"

namespace filigree {
namespace {

template <bool kPositional>
struct EmbedOp {
  const int32_t* tokens;
  Rows<const bf16> table, positions;
  Rows<bf16> out;
  int64_t table_rows, seq_len;

  template <int kVec>
  struct Inputs {
    Bf16Pack<kVec> token, position;
  };
  template <int kVec>
  __device__ Inputs<kVec> Load(int64_t row, int64_t col) const {
    const int32_t token = tokens[row];
    if (token < 0 || token >= table_rows) __trap();
    Inputs<kVec> in;
    in.token = filigree::Load<kVec>(table.row(token) + col);
    if constexpr (kPositional) {
      in.position = filigree::Load<kVec>(positions.row(row % seq_len) + col);
    }
    return in;
  }
  template <int kVec>
  __device__ void Apply(int64_t row, int64_t col, const Inputs<kVec>& in) const {
    if constexpr (!kPositional) {
      Store<kVec>(out.row(row) + col, in.token);
    } else {
      float token[kVec], position[kVec];
      Unpack(in.token, token);
      Unpack(in.position, position);
#pragma unroll
      for (int k = 0; k < kVec; ++k) token[k] += position[k];
      Store<kVec>(out.row(row) + col, Rounded(token));
    }
  }
};

}  // namespace

void CudaBackend::Embedding(const EmbeddingArgs& args, Stream& stream) {
  const int64_t rows = args.out.rows(), cols = args.out.cols();
  const int32_t* tokens = AsElements<int32_t>(args.tokens, rows, "tokens");
  const auto table = AsRows<bf16>(args.table, args.table.rows(), cols, "table");
  const auto out = AsRows<bf16>(args.out, rows, cols, "out");
  const bool vectors = TakeVectors(args.table, args.positions, args.out);
  const cudaStream_t native = NativeStream(stream);
  if (args.positions.empty()) {
    const EmbedOp<false> op{tokens, table, {}, out, args.table.rows(), 1};
    return MapRows(op, rows, cols, vectors, native);
  }
  const auto positions = AsRows<bf16>(args.positions, args.positions.rows(), cols, "positions");
  CHECK(args.seq_len >= 1 && args.seq_len <= args.positions.rows())
      << "sequences of " << args.seq_len << " with " << args.positions.rows() << " positions";
  const EmbedOp<true> op{tokens, table, positions, out, args.table.rows(), args.seq_len};
  MapRows(op, rows, cols, vectors, native);
}

}  // namespace filigree

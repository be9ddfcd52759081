#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/matrix.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd_kernels.h"

namespace filigree {
namespace {

// Query rows whose scores are held at once; keys after the last of them are never read.
constexpr int64_t kQueryRows = 64;

// The shape of one call, and where the rows of a sequence and the columns of a head begin.
struct AttentionShape {
  int64_t sequences, seq_len, heads, kv_heads, head_size;
  double scale;
  int64_t kv_of(int64_t head) const { return head / (heads / kv_heads); }
};

AttentionShape ShapeOf(const ConstTensorView& q, int64_t seq_len, int64_t heads, int64_t kv_heads) {
  CHECK(seq_len >= 1 && q.rows() % seq_len == 0)
      << q.rows() << " tokens in sequences of " << seq_len;
  CHECK(heads >= 1 && kv_heads >= 1 && heads % kv_heads == 0)
      << heads << " heads over " << kv_heads << " key-value heads";
  CHECK(q.cols() % heads == 0) << q.cols() << " columns in " << heads << " heads";
  const int64_t head_size = q.cols() / heads;
  return {q.rows() / seq_len, seq_len,   heads,
          kv_heads,           head_size, 1.0 / std::sqrt(static_cast<double>(head_size))};
}

// One head of one sequence in a [T, heads * E] matrix: [seq_len, E].
template <typename T>
Matrix<T> HeadOf(const Matrix<T>& x, const AttentionShape& shape, int64_t sequence, int64_t head) {
  return {x.row(sequence * shape.seq_len) + head * shape.head_size, shape.seq_len, shape.head_size,
          x.stride};
}

// scores[rows, keys] = q[first .. first + rows) k^T, unscaled.
template <typename T>
void Scores(const Matrix<const T>& q, const Matrix<const T>& k, int64_t first, int64_t rows,
            T* scores) {
  const int64_t keys = first + rows;
  Gemm(false, true, rows, keys, q.cols, T(1), q.row(first), q.stride, k.data, k.stride, T(0),
       scores, keys);
}

// Rows [first, first + rows) of one head's attention.
template <typename T>
void AttendRows(const Matrix<const T>& q, const Matrix<const T>& k, const Matrix<const T>& v,
                const Matrix<T>& out, T* lse, int64_t lse_stride, T scale, int64_t first,
                int64_t rows) {
  const auto& simd = Simd<T>();
  const int64_t keys = first + rows;
  T* scores = Scratch<T>(ScratchSlot::kScores, rows * keys);
  T sums[kQueryRows];
  Scores(q, k, first, rows, scores);
  for (int64_t i = 0; i < rows; ++i) {
    T* row = scores + i * keys;
    const int64_t visible = first + i + 1;
    const T max = simd.max(row, visible) * scale;
    sums[i] = simd.exp_sum(row, scale, max, row, visible);
    std::fill(row + visible, row + keys, T(0));
    lse[(first + i) * lse_stride] = max + std::log(sums[i]);
  }
  Gemm(false, false, rows, v.cols, keys, T(1), scores, keys, v.data, v.stride, T(0), out.row(first),
       out.stride);
  for (int64_t i = 0; i < rows; ++i) simd.scale(out.row(first + i), T(1) / sums[i], v.cols);
}

template <typename T>
void AttentionOf(const AttentionArgs& args) {
  const AttentionShape shape = ShapeOf(args.q, args.seq_len, args.heads, args.kv_heads);
  const int64_t tokens = args.q.rows(), kv_cols = shape.kv_heads * shape.head_size;
  const auto q = AsMatrix<T>(args.q, tokens, args.q.cols(), "q");
  const auto k = AsMatrix<T>(args.k, tokens, kv_cols, "k");
  const auto v = AsMatrix<T>(args.v, tokens, kv_cols, "v");
  const auto out = AsMatrix<T>(args.out, tokens, args.q.cols(), "out");
  const auto lse = AsMatrix<T>(args.lse, tokens, shape.heads, "lse");
  const int64_t strips = CeilDiv(shape.seq_len, kQueryRows);
  ParallelFor(shape.sequences * shape.heads * strips, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % strips * kQueryRows;
      const int64_t head = task / strips % shape.heads, sequence = task / strips / shape.heads;
      const int64_t kv_head = shape.kv_of(head);
      AttendRows(HeadOf(q, shape, sequence, head), HeadOf(k, shape, sequence, kv_head),
                 HeadOf(v, shape, sequence, kv_head), HeadOf(out, shape, sequence, head),
                 lse.row(sequence * shape.seq_len) + head, lse.stride, T(shape.scale), first,
                 std::min(kQueryRows, shape.seq_len - first));
    }
  });
}

// What the backward pass of one query head reads and writes.
template <typename T>
struct HeadGradient {
  Matrix<const T> q, k, v, out, dout;
  const T* lse;
  int64_t lse_stride;
  Matrix<T> dq, dk, dv;
};

// Rows [first, first + rows): writes dq, adds to dk and dv. With p = exp(scale q k^T - lse):
// dv += p^T dout; ds = scale p (dout v^T - rowsum(dout out)); dq = ds k; dk += ds^T q.
template <typename T>
void AttendRowsBackward(const HeadGradient<T>& head, T scale, int64_t first, int64_t rows) {
  const auto& simd = Simd<T>();
  const int64_t keys = first + rows, width = head.q.cols;
  T* p = Scratch<T>(ScratchSlot::kScores, rows * keys);
  T* ds = Scratch<T>(ScratchSlot::kScoreGrads, rows * keys);
  Scores(head.q, head.k, first, rows, p);
  Scores(head.dout, head.v, first, rows, ds);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t visible = first + i + 1;
    const T delta = simd.dot(head.dout.row(first + i), head.out.row(first + i), width);
    simd.exp_sum(p + i * keys, scale, head.lse[(first + i) * head.lse_stride], p + i * keys,
                 visible);
    simd.softmax_backward(p + i * keys, ds + i * keys, delta, scale, visible);
    std::fill(p + i * keys + visible, p + (i + 1) * keys, T(0));
    std::fill(ds + i * keys + visible, ds + (i + 1) * keys, T(0));
  }
  Gemm(true, false, keys, width, rows, T(1), p, keys, head.dout.row(first), head.dout.stride, T(1),
       head.dv.data, head.dv.stride);
  Gemm(false, false, rows, width, keys, T(1), ds, keys, head.k.data, head.k.stride, T(0),
       head.dq.row(first), head.dq.stride);
  Gemm(true, false, keys, width, rows, T(1), ds, keys, head.q.row(first), head.q.stride, T(1),
       head.dk.data, head.dk.stride);
}

template <typename T>
void FillZero(const Matrix<T>& x) {
  for (int64_t i = 0; i < x.rows; ++i) std::fill(x.row(i), x.row(i) + x.cols, T(0));
}

template <typename T>
void AttentionBackwardOf(const AttentionBackwardArgs& args) {
  const AttentionShape shape = ShapeOf(args.q, args.seq_len, args.heads, args.kv_heads);
  const int64_t tokens = args.q.rows(), cols = args.q.cols();
  const int64_t kv_cols = shape.kv_heads * shape.head_size;
  const auto q = AsMatrix<T>(args.q, tokens, cols, "q");
  const auto k = AsMatrix<T>(args.k, tokens, kv_cols, "k");
  const auto v = AsMatrix<T>(args.v, tokens, kv_cols, "v");
  const auto out = AsMatrix<T>(args.out, tokens, cols, "out");
  const auto dout = AsMatrix<T>(args.dout, tokens, cols, "dout");
  const auto lse = AsMatrix<T>(args.lse, tokens, shape.heads, "lse");
  const auto dq = AsMatrix<T>(args.dq, tokens, cols, "dq");
  const auto dk = AsMatrix<T>(args.dk, tokens, kv_cols, "dk");
  const auto dv = AsMatrix<T>(args.dv, tokens, kv_cols, "dv");
  // A thread has whole key-value heads, so that their gradients are summed in a fixed order.
  ParallelFor(shape.sequences * shape.kv_heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t s = task / shape.kv_heads, kv = task % shape.kv_heads;
      FillZero(HeadOf(dk, shape, s, kv));
      FillZero(HeadOf(dv, shape, s, kv));
      const int64_t group = shape.heads / shape.kv_heads;
      for (int64_t h = kv * group; h < (kv + 1) * group; ++h) {
        const HeadGradient<T> head = {
            .q = HeadOf(q, shape, s, h),
            .k = HeadOf(k, shape, s, kv),
            .v = HeadOf(v, shape, s, kv),
            .out = HeadOf(out, shape, s, h),
            .dout = HeadOf(dout, shape, s, h),
            .lse = lse.row(s * shape.seq_len) + h,
            .lse_stride = lse.stride,
            .dq = HeadOf(dq, shape, s, h),
            .dk = HeadOf(dk, shape, s, kv),
            .dv = HeadOf(dv, shape, s, kv),
        };
        for (int64_t first = 0; first < shape.seq_len; first += kQueryRows) {
          AttendRowsBackward(head, T(shape.scale), first,
                             std::min(kQueryRows, shape.seq_len - first));
        }
      }
    }
  });
}

// cos and sin of the angles of [seq_len, half] positions and pairs, kept until another is asked.
template <typename T>
struct RopeTable {
  int64_t seq_len = 0, half = 0;
  double theta = 0;
  std::vector<T> cos, sin;
};

template <typename T>
const RopeTable<T>& RopeTableFor(int64_t seq_len, int64_t half, double theta) {
  thread_local RopeTable<T> table;
  if (table.seq_len == seq_len && table.half == half && table.theta == theta) return table;
  table = {seq_len, half, theta, std::vector<T>(seq_len * half), std::vector<T>(seq_len * half)};
  for (int64_t j = 0; j < half; ++j) {
    const double frequency = std::pow(theta, -static_cast<double>(j) / static_cast<double>(half));
    for (int64_t p = 0; p < seq_len; ++p) {
      table.cos[p * half + j] = static_cast<T>(std::cos(p * frequency));
      table.sin[p * half + j] = static_cast<T>(std::sin(p * frequency));
    }
  }
  return table;
}

template <typename T>
void RopeOf(const RopeArgs& args) {
  const int64_t rows = args.x.rows(), cols = args.x.cols();
  const auto x = AsMatrix<T>(args.x, rows, cols, "x");
  CHECK(args.seq_len >= 1) << "sequences of " << args.seq_len;
  CHECK(args.heads >= 1 && cols % (2 * args.heads) == 0)
      << cols << " columns in " << args.heads << " heads of even size";
  const int64_t head_size = cols / args.heads, half = head_size / 2;
  const RopeTable<T>& table = RopeTableFor<T>(args.seq_len, half, args.theta);
  ParallelFor(rows, RowGrain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* cos = table.cos.data() + i % args.seq_len * half;
      const T* sin = table.sin.data() + i % args.seq_len * half;
      for (int64_t h = 0; h < args.heads; ++h) {
        T* head = x.row(i) + h * head_size;
        Simd<T>().rotate(head, head + half, cos, sin, args.inverse ? T(-1) : T(1), half);
      }
    }
  });
}

}  // namespace

void CpuBackend::Rope(const RopeArgs& args, Stream&) {
  DispatchFloat(args.x.dtype(), [&](auto t) { RopeOf<decltype(t)>(args); });
}
void CpuBackend::Attention(const AttentionArgs& args, Stream&) {
  DispatchFloat(args.q.dtype(), [&](auto t) { AttentionOf<decltype(t)>(args); });
}
void CpuBackend::AttentionBackward(const AttentionBackwardArgs& args, Stream&) {
  DispatchFloat(args.q.dtype(), [&](auto t) { AttentionBackwardOf<decltype(t)>(args); });
}

}  // namespace filigree

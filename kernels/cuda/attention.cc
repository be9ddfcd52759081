#include <cmath>

#include "kernels/cuda/attention_fallback.h"
#include "kernels/cuda/attention_plans.h"
#include "kernels/cuda/attention_shape.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/trace.h"

namespace filigree {
namespace {

void CheckMatrix(const ConstTensorView& view, const char* name, int64_t rows, int64_t cols) {
  CHECK(view.dtype() == DType::kBF16 && view.rows() == rows && view.cols() == cols)
      << name << " is " << NameOf(view.dtype()) << " [" << view.rows() << ", " << view.cols()
      << "], not BF16 [" << rows << ", " << cols << "]";
}

template <typename Args>
AttentionShape CheckedShape(const Args& args) {
  const int64_t tokens = args.q.rows();
  CHECK(args.seq_len >= 1 && tokens % args.seq_len == 0)
      << tokens << " tokens in sequences of " << args.seq_len;
  CHECK(args.heads >= 1 && args.kv_heads >= 1 && args.heads % args.kv_heads == 0)
      << args.heads << " heads over " << args.kv_heads << " key-value heads";
  CHECK(args.q.cols() % args.heads == 0)
      << args.q.cols() << " columns in " << args.heads << " heads";
  const AttentionShape shape = {tokens / args.seq_len, args.seq_len, args.heads, args.kv_heads,
                                args.q.cols() / args.heads};
  const int64_t cols = args.q.cols(), kv_cols = args.kv_heads * shape.head_size;
  CheckMatrix(args.q, "q", tokens, cols);
  CheckMatrix(args.k, "k", tokens, kv_cols);
  CheckMatrix(args.v, "v", tokens, kv_cols);
  CheckMatrix(args.out, "out", tokens, cols);
  CHECK(args.lse.dtype() == DType::kF32 && args.lse.contiguous() && args.lse.rows() == tokens &&
        args.lse.cols() == args.heads)
      << "lse must be contiguous F32 [" << tokens << ", " << args.heads << "]";
  return shape;
}

}  // namespace

float AttentionShape::scale() const {
  return static_cast<float>(1 / std::sqrt(static_cast<double>(head_size)));
}

std::string AttentionShape::Name() const {
  return std::to_string(sequences) + "x" + std::to_string(seq_len) + ", " + std::to_string(heads) +
         "/" + std::to_string(kv_heads) + " heads of " + std::to_string(head_size);
}

AttentionShape ShapeOf(const AttentionArgs& args) { return CheckedShape(args); }

AttentionShape ShapeOf(const AttentionBackwardArgs& args) {
  const AttentionShape shape = CheckedShape(args);
  CheckMatrix(args.dout, "dout", args.q.rows(), args.q.cols());
  CheckMatrix(args.dq, "dq", args.q.rows(), args.q.cols());
  CheckMatrix(args.dk, "dk", args.q.rows(), args.k.cols());
  CheckMatrix(args.dv, "dv", args.q.rows(), args.k.cols());
  return shape;
}

void CudaBackend::Attention(const AttentionArgs& args, Stream& stream) {
  const AttentionShape shape = ShapeOf(args);
  if (shape.tokens() == 0) return;
  const auto workspace = [this](size_t bytes) { return Workspace(bytes); };
  if (attention_plans_->Forward(args, shape, workspace, NativeStream(stream))) return;
  if (TraceKernels()) TraceChoice("attention", shape.Name(), "fallback");
  LaunchAttentionFallback(args, shape, NativeStream(stream));
}

void CudaBackend::AttentionBackward(const AttentionBackwardArgs& args, Stream& stream) {
  const AttentionShape shape = ShapeOf(args);
  if (shape.tokens() == 0) return;
  const auto workspace = [this](size_t bytes) { return Workspace(bytes); };
  if (attention_plans_->Backward(args, shape, deterministic_, workspace, NativeStream(stream))) {
    return;
  }
  if (TraceKernels()) TraceChoice("attention backward", shape.Name(), "fallback");
  auto* delta = reinterpret_cast<float*>(Workspace(AttentionFallbackWorkspaceBytes(shape)));
  LaunchAttentionBackwardFallback(args, shape, delta, NativeStream(stream));
}

}  // namespace filigree

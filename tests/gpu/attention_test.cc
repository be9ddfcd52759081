// Attention on CUDA by both implementations, cuDNN's (where it takes the shape) and the plain one,
// against the CPU in double.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/attention_fallback.h"
#include "kernels/cuda/attention_plans.h"
#include "kernels/cuda/attention_shape.h"
#include "tests/gpu/gpu_testing.h"

namespace filigree {
namespace {

// Rows of every matrix lie this much further apart than they are long.
constexpr int64_t kGap = 8;
// The plain kernels keep everything in F32. cuDNN rounds probabilities and the gradients of scores
// to BF16 on their way into the tensor cores, each by up to 2^-9 of itself.
constexpr double kPlainFloor = 1e-4, kFloor = 1.0 / 512;

struct Case {
  int64_t sequences, seq_len, heads, kv_heads, head_size;
  double scale = 1;  // of queries and keys

  int64_t tokens() const { return sequences * seq_len; }
  int64_t q_cols() const { return heads * head_size; }
  int64_t kv_cols() const { return kv_heads * head_size; }
  int64_t cols() const { return q_cols() + 2 * kv_cols(); }
  std::string Name(const std::string& what) const {
    return what + " of " + std::to_string(sequences) + "x" + std::to_string(seq_len) + ", " +
           std::to_string(heads) + "/" + std::to_string(kv_heads) + " heads of " +
           std::to_string(head_size);
  }
};

const Case kCases[] = {
    {3, 1, 2, 1, 16},      // each token sees itself alone
    {2, 7, 3, 3, 8},       //
    {2, 63, 4, 2, 48},     // one short of a tile
    {2, 64, 4, 4, 64},     // a tile
    {2, 64, 4, 4, 64, 3},  // of sharp probabilities
    {1, 129, 6, 2, 128},   // one more than two tiles
    {2, 70, 2, 1, 256},    // the widest heads
    {1, 45, 2, 2, 7},      // odd heads, whose rows are not aligned
    {2, 128, 2, 1, 16},      {1, 192, 2, 2, 8},   {1, 256, 3, 1, 48},   {1, 1000, 4, 2, 64},
    {1, 1024, 8, 2, 128, 2}, {2, 2048, 2, 2, 64}, {1, 2048, 2, 1, 128},
};

enum class Path { kBackend, kPlain };

// q, k and v are column slices of one matrix, as a fused projection leaves them.
class Problem {
 public:
  explicit Problem(const Case& c)
      : c_(c),
        qk_(Mirror::Random(c.tokens(), c.q_cols() + c.kv_cols(), DType::kBF16, 1, c.scale)),
        v_(Mirror::Random(c.tokens(), c.kv_cols(), DType::kBF16, 2)),
        qkv_(Mirror::Of(c.tokens(), c.cols(), DType::kBF16, Joined(), kGap)),
        dout_(Mirror::Random(c.tokens(), c.q_cols(), DType::kBF16, 3, 1, kGap)),
        out_(Mirror::Output(c.tokens(), c.q_cols(), DType::kBF16, kGap)),
        dqkv_(Mirror::Output(c.tokens(), c.cols(), DType::kBF16, kGap)),
        token_lse_(c.tokens() * c.heads) {}

  AttentionArgs Gpu(Mirror& out, Mirror& lse) { return Args(qkv_.gpu(), out.gpu(), LseView(lse)); }
  AttentionArgs Cpu() { return Args(qkv_.cpu(), out_.cpu(), token_lse()); }
  AttentionBackwardArgs GpuBackward(Mirror& out, Mirror& lse, Mirror& dqkv) {
    return BackwardArgs(Gpu(out, lse), dout_.gpu(), dqkv.gpu());
  }
  // `out` holds what the GPU reads, rounded.
  AttentionBackwardArgs CpuBackward(Mirror& out) {
    return BackwardArgs(Args(qkv_.cpu(), out.cpu(), token_lse()), dout_.cpu(), dqkv_.cpu());
  }

  // The reference's log-sum-exp as CUDA stores it: [B, H, S].
  std::vector<double> HeadLse() const {
    std::vector<double> result;
    for (int64_t row = 0; row < c_.sequences * c_.heads; ++row) {
      const int64_t sequence = row / c_.heads, head = row % c_.heads;
      for (int64_t position = 0; position < c_.seq_len; ++position) {
        result.push_back(token_lse_[(sequence * c_.seq_len + position) * c_.heads + head]);
      }
    }
    return result;
  }
  std::vector<double> Out() { return out_.Reference(); }
  Mirror NewLse() const { return Mirror::Output(c_.sequences * c_.heads, c_.seq_len, DType::kF32); }
  Mirror NewOut() const { return Mirror::Output(c_.tokens(), c_.q_cols(), DType::kBF16, kGap); }
  Mirror NewGradients() const { return Mirror::Output(c_.tokens(), c_.cols(), DType::kBF16, kGap); }

  // Columns [begin, begin + count): what the GPU wrote beside the reference.
  Mirror Gradient(const Mirror& found, int64_t begin, int64_t count) const {
    const auto part = [&](const std::vector<double>& whole) {
      std::vector<double> values;
      for (int64_t row = 0; row < c_.tokens(); ++row) {
        const auto first = whole.begin() + row * c_.cols() + begin;
        values.insert(values.end(), first, first + count);
      }
      return values;
    };
    Mirror mirror = Mirror::Of(c_.tokens(), count, DType::kBF16, part(found.Download()));
    const std::vector<double> expected = part(dqkv_.Reference());
    std::copy(expected.begin(), expected.end(), mirror.cpu().As<double>());
    return mirror;
  }

 private:
  std::vector<double> Joined() {
    const std::vector<double> qk = qk_.Reference(), v = v_.Reference();
    std::vector<double> joined;
    const int64_t qk_cols = c_.q_cols() + c_.kv_cols();
    for (int64_t row = 0; row < c_.tokens(); ++row) {
      joined.insert(joined.end(), qk.begin() + row * qk_cols, qk.begin() + (row + 1) * qk_cols);
      joined.insert(joined.end(), v.begin() + row * c_.kv_cols(),
                    v.begin() + (row + 1) * c_.kv_cols());
    }
    return joined;
  }
  TensorView Q(const TensorView& qkv) const { return qkv.Cols(0, c_.q_cols()); }
  TensorView K(const TensorView& qkv) const { return qkv.Cols(c_.q_cols(), c_.kv_cols()); }
  TensorView V(const TensorView& qkv) const {
    return qkv.Cols(c_.q_cols() + c_.kv_cols(), c_.kv_cols());
  }
  AttentionArgs Args(const TensorView& qkv, const TensorView& out, const TensorView& lse) const {
    return {Q(qkv), K(qkv), V(qkv), out, lse, c_.seq_len, c_.heads, c_.kv_heads};
  }
  AttentionBackwardArgs BackwardArgs(const AttentionArgs& forward, const TensorView& dout,
                                     const TensorView& dqkv) const {
    return {.q = forward.q,
            .k = forward.k,
            .v = forward.v,
            .out = forward.out,
            .dout = dout,
            .lse = forward.lse,
            .dq = Q(dqkv),
            .dk = K(dqkv),
            .dv = V(dqkv),
            .seq_len = c_.seq_len,
            .heads = c_.heads,
            .kv_heads = c_.kv_heads};
  }
  TensorView LseView(const Mirror& lse) const {
    return TensorView(lse.gpu().data(), DType::kF32, {c_.tokens(), c_.heads});
  }
  TensorView token_lse() {
    return TensorView(token_lse_.data(), DType::kF64, {c_.tokens(), c_.heads});
  }

  const Case c_;
  Mirror qk_, v_, qkv_, dout_, out_, dqkv_;
  std::vector<double> token_lse_;
};

class AttentionTest : public GpuTest {
 protected:
  void Forward(Path path, const AttentionArgs& args) {
    if (path == Path::kBackend) {
      gpu().Attention(args, stream());
    } else {
      LaunchAttentionFallback(args, ShapeOf(args), NativeStream(stream()));
    }
    stream().Synchronize();
  }

  void Backward(Path path, const AttentionBackwardArgs& args) {
    if (path == Path::kBackend) {
      gpu().AttentionBackward(args, stream());
    } else {
      const AttentionShape shape = ShapeOf(args);
      auto* delta = reinterpret_cast<float*>(Scratch(AttentionFallbackWorkspaceBytes(shape)));
      LaunchAttentionBackwardFallback(args, shape, delta, NativeStream(stream()));
    }
    stream().Synchronize();
  }

  std::byte* Scratch(size_t bytes) {
    if (scratch_.bytes() < bytes) scratch_ = device().Allocate(bytes, "test");
    return static_cast<std::byte*>(scratch_.data());
  }

  void ExpectForward(const Case& c, Problem& problem, Path path, double floor) {
    Mirror out = problem.NewOut(), lse = problem.NewLse();
    Forward(path, problem.Gpu(out, lse));
    const std::vector<double> want = problem.Out(), want_lse = problem.HeadLse();
    std::copy(want.begin(), want.end(), out.cpu().As<double>());
    std::copy(want_lse.begin(), want_lse.end(), lse.cpu().As<double>());
    ExpectParity(out, c.Name("out"), floor);
    ExpectParity(lse, c.Name("lse"));
  }

  // From the reference's out and log-sum-exp, so that errors of the forward pass stay out.
  void ExpectBackward(const Case& c, Problem& problem, Path path, double floor) {
    Mirror out = Mirror::Of(c.tokens(), c.q_cols(), DType::kBF16, problem.Out(), kGap);
    Mirror lse = Mirror::Of(c.sequences * c.heads, c.seq_len, DType::kF32, problem.HeadLse());
    Mirror found = problem.NewGradients();
    Backward(path, problem.GpuBackward(out, lse, found));
    cpu().AttentionBackward(problem.CpuBackward(out), cpu_stream());
    EXPECT_TRUE(found.GapsAreIntact()) << c.Name("gradients");
    Mirror dq = problem.Gradient(found, 0, c.q_cols());
    Mirror dk = problem.Gradient(found, c.q_cols(), c.kv_cols());
    Mirror dv = problem.Gradient(found, c.q_cols() + c.kv_cols(), c.kv_cols());
    ExpectParity(dv, c.Name("dv"), floor);
    if (c.seq_len == 1) {
      // A softmax of one score is constant: what the reference holds is its own rounding.
      for (const Mirror* gradient : {&dq, &dk}) {
        for (double value : gradient->Download()) EXPECT_LE(std::abs(value), 1e-5);
      }
      return;
    }
    ExpectParity(dq, c.Name("dq"), floor);
    ExpectParity(dk, c.Name("dk"), floor);
  }

  // What one backward pass leaves, from a forward pass by the backend.
  std::vector<double> Gradients(Problem& problem, Path path) {
    Mirror out = problem.NewOut(), lse = problem.NewLse(), found = problem.NewGradients();
    Forward(path, problem.Gpu(out, lse));
    Backward(path, problem.GpuBackward(out, lse, found));
    return found.Download();
  }

  DeviceBuffer scratch_;
};

TEST_F(AttentionTest, AgreesWithTheCpu) {
  for (const Case& c : kCases) {
    Problem problem(c);
    cpu().Attention(problem.Cpu(), cpu_stream());
    ExpectForward(c, problem, Path::kPlain, kPlainFloor);
    ExpectForward(c, problem, Path::kBackend, kFloor);
    ExpectBackward(c, problem, Path::kPlain, kPlainFloor);
    ExpectBackward(c, problem, Path::kBackend, kFloor);
  }
}

TEST_F(AttentionTest, DeterministicBackwardAgreesWithTheCpu) {
  gpu().set_deterministic(true);
  for (const Case& c : {Case{2, 256, 4, 2, 64}, Case{1, 1024, 2, 2, 128}}) {
    Problem problem(c);
    cpu().Attention(problem.Cpu(), cpu_stream());
    ExpectBackward(c, problem, Path::kBackend, kFloor);
  }
  gpu().set_deterministic(false);
}

TEST_F(AttentionTest, DeterministicBackwardRepeatsItsBits) {
  gpu().set_deterministic(true);
  for (const Case& c : {Case{2, 1024, 4, 2, 64}, Case{1, 515, 4, 1, 48}}) {
    Problem problem(c);
    for (Path path : {Path::kBackend, Path::kPlain}) {
      const std::vector<double> first = Gradients(problem, path);
      for (int repeat = 0; repeat < 3; ++repeat) EXPECT_EQ(Gradients(problem, path), first);
    }
  }
  gpu().set_deterministic(false);
}

// The shapes that training is measured on must not fall to the plain kernels unnoticed.
TEST_F(AttentionTest, CudnnTakesWhatTrainingUses) {
  if (!AttentionPlans::Available()) GTEST_SKIP() << "built without cuDNN";
  AttentionPlans plans;
  const auto scratch = [this](size_t bytes) { return Scratch(bytes); };
  for (const Case& c :
       {Case{2, 1024, 12, 12, 64}, Case{1, 2048, 16, 16, 128}, Case{4, 256, 32, 8, 64}}) {
    Problem problem(c);
    Mirror out = problem.NewOut(), lse = problem.NewLse(), found = problem.NewGradients();
    const AttentionArgs args = problem.Gpu(out, lse);
    const AttentionBackwardArgs backward = problem.GpuBackward(out, lse, found);
    const cudaStream_t native = NativeStream(stream());
    EXPECT_TRUE(plans.Forward(args, ShapeOf(args), scratch, native)) << c.Name("forward");
    EXPECT_TRUE(plans.Backward(backward, ShapeOf(backward), false, scratch, native))
        << c.Name("backward");
    EXPECT_TRUE(plans.Backward(backward, ShapeOf(backward), true, scratch, native))
        << c.Name("deterministic backward");
    stream().Synchronize();
  }
}

TEST_F(AttentionTest, CudnnDeclinesUnalignedViewsAndOddLengths) {
  AttentionPlans plans;
  const auto scratch = [this](size_t bytes) { return Scratch(bytes); };
  for (const Case& c : {Case{1, 63, 2, 2, 64}, Case{1, 64, 2, 2, 12}}) {
    Problem problem(c);
    Mirror out = problem.NewOut(), lse = problem.NewLse();
    const AttentionArgs args = problem.Gpu(out, lse);
    EXPECT_FALSE(plans.Forward(args, ShapeOf(args), scratch, NativeStream(stream())))
        << c.Name("forward");
  }
  const Case c = {1, 64, 2, 2, 64};
  Problem problem(c);
  Mirror narrow = Mirror::Output(c.tokens(), c.q_cols(), DType::kBF16, /*gap=*/4);
  Mirror lse = problem.NewLse();
  const AttentionArgs args = problem.Gpu(narrow, lse);
  EXPECT_FALSE(plans.Forward(args, ShapeOf(args), scratch, NativeStream(stream())));
}

}  // namespace
}  // namespace filigree

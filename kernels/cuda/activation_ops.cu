// SwiGLU, SiLU, GELU and their gradients, and sums, element by element.
// Grid and block: map_rows.cuh. Bytes an element: SwiGlu 6, its backward 10, Gelu 4, its backward
// 6, Add 6.
#include <type_traits>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device_rows.h"
#include "kernels/cuda/map_rows.cuh"

namespace filigree {
namespace {

// Saturates to 0 and 1 without a special case: 1 / infinity is 0.
__device__ __forceinline__ float Sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

// 2 sqrt(2 / pi) (x + 0.044715 x^3): gelu(x) = x sigmoid(that), since (1 + tanh(u)) / 2 is
// sigmoid(2 u).
constexpr float kGeluScale = 1.5957691216057308f, kGeluCubic = 0.044715f;
__device__ __forceinline__ float GeluGate(float x) {
  return Sigmoid(kGeluScale * x * (1.0f + kGeluCubic * x * x));
}

// What the operations read: one, two or three packs.
template <int kVec>
struct OnePack {
  Bf16Pack<kVec> a;
};
template <int kVec>
struct TwoPacks {
  Bf16Pack<kVec> a, b;
};
template <int kVec>
struct ThreePacks {
  Bf16Pack<kVec> a, b, c;
};

// kLinear: without the SiLU, in both.
template <bool kLinear>
struct SwiGluOp {
  Rows<const bf16> gate, up;
  Rows<bf16> y;

  template <int kVec>
  using Inputs = TwoPacks<kVec>;
  template <int kVec>
  __device__ Inputs<kVec> Load(int64_t row, int64_t col) const {
    return {filigree::Load<kVec>(gate.row(row) + col), filigree::Load<kVec>(up.row(row) + col)};
  }
  template <int kVec>
  __device__ void Apply(int64_t row, int64_t col, const Inputs<kVec>& in) const {
    float g[kVec], u[kVec];
    Unpack(in.a, g);
    Unpack(in.b, u);
#pragma unroll
    for (int k = 0; k < kVec; ++k) g[k] *= kLinear ? u[k] : Sigmoid(g[k]) * u[k];
    Store<kVec>(y.row(row) + col, Rounded(g));
  }
};

// dup = dy silu(g); dgate = dy up s (1 + g (1 - s)), s = sigmoid(g).
template <bool kLinear>
struct SwiGluBackwardOp {
  Rows<const bf16> gate, up, dy;
  Rows<bf16> dgate, dup;

  template <int kVec>
  using Inputs = ThreePacks<kVec>;
  template <int kVec>
  __device__ Inputs<kVec> Load(int64_t row, int64_t col) const {
    return {filigree::Load<kVec>(gate.row(row) + col), filigree::Load<kVec>(up.row(row) + col),
            filigree::Load<kVec>(dy.row(row) + col)};
  }
  template <int kVec>
  __device__ void Apply(int64_t row, int64_t col, const Inputs<kVec>& in) const {
    float g[kVec], u[kVec], d[kVec];
    Unpack(in.a, g);
    Unpack(in.b, u);
    Unpack(in.c, d);
#pragma unroll
    for (int k = 0; k < kVec; ++k) {
      const float s = kLinear ? 1.0f : Sigmoid(g[k]);
      u[k] *= kLinear ? d[k] : d[k] * s * (1.0f + g[k] * (1.0f - s));
      d[k] *= g[k] * s;
    }
    Store<kVec>(dgate.row(row) + col, Rounded(u));
    Store<kVec>(dup.row(row) + col, Rounded(d));
  }
};

struct GeluOp {
  Rows<const bf16> x;
  Rows<bf16> y;

  template <int kVec>
  using Inputs = OnePack<kVec>;
  template <int kVec>
  __device__ Inputs<kVec> Load(int64_t row, int64_t col) const {
    return {filigree::Load<kVec>(x.row(row) + col)};
  }
  template <int kVec>
  __device__ void Apply(int64_t row, int64_t col, const Inputs<kVec>& in) const {
    float v[kVec];
    Unpack(in.a, v);
#pragma unroll
    for (int k = 0; k < kVec; ++k) v[k] *= GeluGate(v[k]);
    Store<kVec>(y.row(row) + col, Rounded(v));
  }
};

// dx = dy (s + x s (1 - s) d/dx of the gate's argument).
struct GeluBackwardOp {
  Rows<const bf16> x, dy;
  Rows<bf16> dx;

  template <int kVec>
  using Inputs = TwoPacks<kVec>;
  template <int kVec>
  __device__ Inputs<kVec> Load(int64_t row, int64_t col) const {
    return {filigree::Load<kVec>(x.row(row) + col), filigree::Load<kVec>(dy.row(row) + col)};
  }
  template <int kVec>
  __device__ void Apply(int64_t row, int64_t col, const Inputs<kVec>& in) const {
    float v[kVec], d[kVec];
    Unpack(in.a, v);
    Unpack(in.b, d);
#pragma unroll
    for (int k = 0; k < kVec; ++k) {
      const float s = GeluGate(v[k]);
      const float slope = kGeluScale * (1.0f + 3.0f * kGeluCubic * v[k] * v[k]);
      d[k] *= s + v[k] * s * (1.0f - s) * slope;
    }
    Store<kVec>(dx.row(row) + col, Rounded(d));
  }
};

struct AddOp {
  Rows<const bf16> a, b;
  Rows<bf16> out;

  template <int kVec>
  using Inputs = TwoPacks<kVec>;
  template <int kVec>
  __device__ Inputs<kVec> Load(int64_t row, int64_t col) const {
    return {filigree::Load<kVec>(a.row(row) + col), filigree::Load<kVec>(b.row(row) + col)};
  }
  template <int kVec>
  __device__ void Apply(int64_t row, int64_t col, const Inputs<kVec>& in) const {
    float x[kVec], y[kVec];
    Unpack(in.a, x);
    Unpack(in.b, y);
#pragma unroll
    for (int k = 0; k < kVec; ++k) x[k] += y[k];
    Store<kVec>(out.row(row) + col, Rounded(x));
  }
};

struct SiluOp {
  Rows<const bf16> x;
  Rows<bf16> y;

  template <int kVec>
  using Inputs = OnePack<kVec>;
  template <int kVec>
  __device__ Inputs<kVec> Load(int64_t row, int64_t col) const {
    return {filigree::Load<kVec>(x.row(row) + col)};
  }
  template <int kVec>
  __device__ void Apply(int64_t row, int64_t col, const Inputs<kVec>& in) const {
    float v[kVec];
    Unpack(in.a, v);
#pragma unroll
    for (int k = 0; k < kVec; ++k) v[k] *= Sigmoid(v[k]);
    Store<kVec>(y.row(row) + col, Rounded(v));
  }
};

// dx = dy s (1 + x (1 - s)), s = sigmoid(x).
struct SiluBackwardOp {
  Rows<const bf16> x, dy;
  Rows<bf16> dx;

  template <int kVec>
  using Inputs = TwoPacks<kVec>;
  template <int kVec>
  __device__ Inputs<kVec> Load(int64_t row, int64_t col) const {
    return {filigree::Load<kVec>(x.row(row) + col), filigree::Load<kVec>(dy.row(row) + col)};
  }
  template <int kVec>
  __device__ void Apply(int64_t row, int64_t col, const Inputs<kVec>& in) const {
    float v[kVec], d[kVec];
    Unpack(in.a, v);
    Unpack(in.b, d);
#pragma unroll
    for (int k = 0; k < kVec; ++k) {
      const float s = Sigmoid(v[k]);
      d[k] *= s * (1.0f + v[k] * (1.0f - s));
    }
    Store<kVec>(dx.row(row) + col, Rounded(d));
  }
};

}  // namespace

void CudaBackend::SwiGlu(const SwiGluArgs& args, Stream& stream) {
  const int64_t rows = args.y.rows(), cols = args.y.cols();
  if (args.up.empty()) {
    const SiluOp op{AsRows<bf16>(args.gate, rows, cols, "gate"),
                    AsRows<bf16>(args.y, rows, cols, "y")};
    MapRows(op, rows, cols, TakeVectors(args.gate, args.y), NativeStream(stream));
    return;
  }
  const auto map = [&](auto linear) {
    const SwiGluOp<decltype(linear)::value> op{AsRows<bf16>(args.gate, rows, cols, "gate"),
                                               AsRows<bf16>(args.up, rows, cols, "up"),
                                               AsRows<bf16>(args.y, rows, cols, "y")};
    MapRows(op, rows, cols, TakeVectors(args.gate, args.up, args.y), NativeStream(stream));
  };
  args.linear ? map(std::true_type{}) : map(std::false_type{});
}

void CudaBackend::SwiGluBackward(const SwiGluBackwardArgs& args, Stream& stream) {
  const int64_t rows = args.dy.rows(), cols = args.dy.cols();
  if (args.up.empty()) {
    const SiluBackwardOp op{AsRows<bf16>(args.gate, rows, cols, "gate"),
                            AsRows<bf16>(args.dy, rows, cols, "dy"),
                            AsRows<bf16>(args.dgate, rows, cols, "dgate")};
    MapRows(op, rows, cols, TakeVectors(args.gate, args.dy, args.dgate), NativeStream(stream));
    return;
  }
  const auto map = [&](auto linear) {
    const SwiGluBackwardOp<decltype(linear)::value> op{
        AsRows<bf16>(args.gate, rows, cols, "gate"), AsRows<bf16>(args.up, rows, cols, "up"),
        AsRows<bf16>(args.dy, rows, cols, "dy"), AsRows<bf16>(args.dgate, rows, cols, "dgate"),
        AsRows<bf16>(args.dup, rows, cols, "dup")};
    MapRows(op, rows, cols, TakeVectors(args.gate, args.up, args.dy, args.dgate, args.dup),
            NativeStream(stream));
  };
  args.linear ? map(std::true_type{}) : map(std::false_type{});
}

void CudaBackend::Gelu(const GeluArgs& args, Stream& stream) {
  const int64_t rows = args.y.rows(), cols = args.y.cols();
  const GeluOp op{AsRows<bf16>(args.x, rows, cols, "x"), AsRows<bf16>(args.y, rows, cols, "y")};
  MapRows(op, rows, cols, TakeVectors(args.x, args.y), NativeStream(stream));
}

void CudaBackend::GeluBackward(const GeluBackwardArgs& args, Stream& stream) {
  const int64_t rows = args.dy.rows(), cols = args.dy.cols();
  const GeluBackwardOp op{AsRows<bf16>(args.x, rows, cols, "x"),
                          AsRows<bf16>(args.dy, rows, cols, "dy"),
                          AsRows<bf16>(args.dx, rows, cols, "dx")};
  MapRows(op, rows, cols, TakeVectors(args.x, args.dy, args.dx), NativeStream(stream));
}

void CudaBackend::Add(const AddArgs& args, Stream& stream) {
  const int64_t rows = args.out.rows(), cols = args.out.cols();
  const AddOp op{AsRows<bf16>(args.a, rows, cols, "a"), AsRows<bf16>(args.b, rows, cols, "b"),
                 AsRows<bf16>(args.out, rows, cols, "out")};
  MapRows(op, rows, cols, TakeVectors(args.a, args.b, args.out), NativeStream(stream));
}

}  // namespace filigree

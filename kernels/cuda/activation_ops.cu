// SwiGLU, SiLU, GELU and their gradients, and sums, element by element.
// Grid and block: map_rows.cuh. Bytes an element: SwiGlu 6, its backward 10, Gelu 4, its backward
// 6, with codes 5 both, Add 6.
#include <type_traits>

#include "kernels/base/gelu_code.h"
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

// kVec codes in one access.
template <int kVec>
struct alignas(kVec) Bytes {
  uint8_t byte[kVec];
};

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

// y = f(x), F::Value.
template <typename F>
struct UnaryOp {
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
    for (int k = 0; k < kVec; ++k) v[k] = F::Value(v[k]);
    Store<kVec>(y.row(row) + col, Rounded(v));
  }
};

// dx = dy f'(x), F::Slope.
template <typename F>
struct UnaryBackwardOp {
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
    for (int k = 0; k < kVec; ++k) d[k] *= F::Slope(v[k]);
    Store<kVec>(dx.row(row) + col, Rounded(d));
  }
};

struct GeluFunction {
  static __device__ float Value(float x) { return x * GeluGate(x); }
  // s + x s (1 - s) d/dx of the gate's argument.
  static __device__ float Slope(float x) {
    const float s = GeluGate(x);
    const float slope = kGeluScale * (1.0f + 3.0f * kGeluCubic * x * x);
    return s + x * s * (1.0f - s) * slope;
  }
};

// y = gelu(x), and the codes of gelu'(x).
struct GeluCodeOp {
  Rows<const bf16> x;
  Rows<bf16> y;
  Rows<uint8_t> codes;

  template <int kVec>
  using Inputs = OnePack<kVec>;
  template <int kVec>
  __device__ Inputs<kVec> Load(int64_t row, int64_t col) const {
    return {filigree::Load<kVec>(x.row(row) + col)};
  }
  template <int kVec>
  __device__ void Apply(int64_t row, int64_t col, const Inputs<kVec>& in) const {
    constexpr float kUnit = kGeluCodesPerUnit;
    float v[kVec];
    Unpack(in.a, v);
    Bytes<kVec> code;
#pragma unroll
    for (int k = 0; k < kVec; ++k) {
      const float steps = fmaf(GeluFunction::Slope(v[k]), kUnit, kGeluCodeOfZero + 0.5f);
      code.byte[k] = static_cast<uint8_t>(fminf(fmaxf(steps, 0.0f), 255.0f));
      v[k] = GeluFunction::Value(v[k]);
    }
    *reinterpret_cast<Bytes<kVec>*>(codes.row(row) + col) = code;
    Store<kVec>(y.row(row) + col, Rounded(v));
  }
};

// dx = dy times what the codes stand for.
struct GeluCodeBackwardOp {
  Rows<const uint8_t> codes;
  Rows<const bf16> dy;
  Rows<bf16> dx;

  template <int kVec>
  struct Inputs {
    Bytes<kVec> code;
    Bf16Pack<kVec> dy;
  };
  template <int kVec>
  __device__ Inputs<kVec> Load(int64_t row, int64_t col) const {
    return {*reinterpret_cast<const Bytes<kVec>*>(codes.row(row) + col),
            filigree::Load<kVec>(dy.row(row) + col)};
  }
  template <int kVec>
  __device__ void Apply(int64_t row, int64_t col, const Inputs<kVec>& in) const {
    float d[kVec];
    Unpack(in.dy, d);
#pragma unroll
    for (int k = 0; k < kVec; ++k) {
      d[k] *= static_cast<float>(in.code.byte[k] - kGeluCodeOfZero) * (1.0f / kGeluCodesPerUnit);
    }
    Store<kVec>(dx.row(row) + col, Rounded(d));
  }
};

struct SiluFunction {
  static __device__ float Value(float x) { return x * Sigmoid(x); }
  // s (1 + x (1 - s)), s = sigmoid(x).
  static __device__ float Slope(float x) {
    const float s = Sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
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

template <typename F>
void MapUnary(const ConstTensorView& x, const TensorView& y, Stream& stream) {
  const int64_t rows = y.rows(), cols = y.cols();
  const UnaryOp<F> op{AsRows<bf16>(x, rows, cols, "x"), AsRows<bf16>(y, rows, cols, "y")};
  MapRows(op, rows, cols, TakeVectors(x, y), NativeStream(stream));
}

template <typename F>
void MapUnaryBackward(const ConstTensorView& x, const ConstTensorView& dy, const TensorView& dx,
                      Stream& stream) {
  const int64_t rows = dy.rows(), cols = dy.cols();
  const UnaryBackwardOp<F> op{AsRows<bf16>(x, rows, cols, "x"), AsRows<bf16>(dy, rows, cols, "dy"),
                              AsRows<bf16>(dx, rows, cols, "dx")};
  MapRows(op, rows, cols, TakeVectors(x, dy, dx), NativeStream(stream));
}

}  // namespace

void CudaBackend::SwiGlu(const SwiGluArgs& args, Stream& stream) {
  if (args.up.empty()) return MapUnary<SiluFunction>(args.gate, args.y, stream);
  const int64_t rows = args.y.rows(), cols = args.y.cols();
  const auto map = [&](auto linear) {
    const SwiGluOp<decltype(linear)::value> op{AsRows<bf16>(args.gate, rows, cols, "gate"),
                                               AsRows<bf16>(args.up, rows, cols, "up"),
                                               AsRows<bf16>(args.y, rows, cols, "y")};
    MapRows(op, rows, cols, TakeVectors(args.gate, args.up, args.y), NativeStream(stream));
  };
  args.linear ? map(std::true_type{}) : map(std::false_type{});
}

void CudaBackend::SwiGluBackward(const SwiGluBackwardArgs& args, Stream& stream) {
  if (args.up.empty()) {
    return MapUnaryBackward<SiluFunction>(args.gate, args.dy, args.dgate, stream);
  }
  const int64_t rows = args.dy.rows(), cols = args.dy.cols();
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
  if (args.codes.empty()) return MapUnary<GeluFunction>(args.x, args.y, stream);
  const int64_t rows = args.y.rows(), cols = args.y.cols();
  const GeluCodeOp op{AsRows<bf16>(args.x, rows, cols, "x"), AsRows<bf16>(args.y, rows, cols, "y"),
                      AsRows<uint8_t>(args.codes, rows, cols, "codes")};
  MapRows(op, rows, cols, TakeVectors(args.x, args.y, args.codes), NativeStream(stream));
}

void CudaBackend::GeluBackward(const GeluBackwardArgs& args, Stream& stream) {
  if (args.x.dtype() != DType::kU8) {
    return MapUnaryBackward<GeluFunction>(args.x, args.dy, args.dx, stream);
  }
  const int64_t rows = args.dy.rows(), cols = args.dy.cols();
  const GeluCodeBackwardOp op{AsRows<uint8_t>(args.x, rows, cols, "codes"),
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

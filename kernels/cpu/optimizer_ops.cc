#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/adamw_elements.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/matrix.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd_kernels.h"
#include "kernels/cpu/wide_grad.h"

namespace filigree {
namespace {

// Elements worth a thread, and the length of the ranges that SumOfSquares adds in order.
constexpr int64_t kRange = 1 << 14;

template <typename T>
void AdamWOf(const AdamWArgs& args, double scale) {
  const int64_t n = args.values.size();
  T* values = AsVector<T>(args.values, n, "values");
  T* master = AsVector<T>(args.master, n, "master");
  const T* grads = AsVector<T>(args.grads, n, "grads");
  T* m = AsVector<T>(args.m, n, "m");
  T* v = AsVector<T>(args.v, n, "v");
  const T* born = args.born.empty() ? nullptr : AsVector<T>(args.born, n, "born");
  const AdamWElements<T> elements(args, scale);
  ParallelFor(n, kRange, [&](int64_t begin, int64_t end) {
    elements.Update(values + begin, master + begin, grads + begin, m + begin, v + begin,
                    born ? born + begin : nullptr, end - begin);
  });
}

template <typename T>
void SumOfSquaresOf(const SumOfSquaresArgs& args) {
  const int64_t n = args.in.size();
  const T* in = AsVector<T>(args.in, n, "in");
  const int64_t ranges = CeilDiv(n, kRange);
  double* sums = Scratch<double>(ScratchSlot::kSums, ranges);
  ParallelFor(ranges, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      sums[i] = Simd<T>().sum_of_squares(in + i * kRange, std::min(kRange, n - i * kRange));
    }
  });
  double* out = AsVector<double>(args.out, 1, "out");
  for (int64_t i = 0; i < ranges; ++i) *out += sums[i];
}

}  // namespace

void CpuBackend::AdamW(const AdamWArgs& args, Stream&) {
  CHECK_GE(args.step, 1);
  const double scale = *AsVector<float>(args.scale, 1, "scale");
  if (!std::isfinite(scale)) return;
  AdamWArgs wide = args;
  wide.grads = Widened(args.grads);
  if (args.master.empty() || args.m.dtype() == DType::kU8) return AdamWCompact(wide, scale);
  DispatchFloat(args.values.dtype(), [&](auto t) { AdamWOf<decltype(t)>(wide, scale); });
}

void CpuBackend::SumOfSquares(const SumOfSquaresArgs& args, Stream&) {
  const SumOfSquaresArgs wide = {.in = Widened(args.in), .out = args.out};
  DispatchFloat(wide.in.dtype(), [&](auto t) { SumOfSquaresOf<decltype(t)>(wide); });
}

void CpuBackend::ClipScale(const ClipScaleArgs& args, Stream&) {
  const double norm = std::sqrt(*AsVector<double>(args.sum_of_squares, 1, "sum_of_squares"));
  double scale = args.clip_norm > 0 && norm > args.clip_norm ? args.clip_norm / norm : 1;
  if (!std::isfinite(norm)) scale = std::numeric_limits<double>::quiet_NaN();
  *AsVector<float>(args.scale, 1, "scale") = static_cast<float>(scale);
}

void CpuBackend::Round(const RoundArgs& args, Stream&) {
  const int64_t n = args.in.size();
  const float* in = AsVector<float>(args.in, n, "in");
  BFloat16* out = AsVector<BFloat16>(args.out, n, "out");
  ParallelFor(n, kRange, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) out[i] = BFloat16(in[i]);
  });
}

}  // namespace filigree

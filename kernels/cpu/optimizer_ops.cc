#include <algorithm>
#include <cmath>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/matrix.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/simd_kernels.h"
#include "kernels/cpu/wide_grad.h"

namespace filigree {
namespace {

// Elements worth a thread, and the length of the ranges that SumOfSquares adds in order.
constexpr int64_t kRange = 1 << 14;

// The factors for elements whose own step is `step`; `ramp` scales their update.
AdamWFactors FactorsAt(const AdamWArgs& args, double scale, int64_t step, double ramp) {
  return {
      .grad_scale = scale,
      .lr = args.lr * ramp,
      .beta1 = args.beta1,
      .beta2 = args.beta2,
      .epsilon = args.epsilon,
      .weight_decay = args.weight_decay,
      .correction1 = 1.0 / (1.0 - std::pow(args.beta1, static_cast<double>(step))),
      .correction2 = 1.0 / (1.0 - std::pow(args.beta2, static_cast<double>(step))),
  };
}

template <typename T>
void AdamWOf(const AdamWArgs& args, double scale) {
  const int64_t n = args.values.size();
  T* values = AsVector<T>(args.values, n, "values");
  T* master = AsVector<T>(args.master, n, "master");
  const T* grads = AsVector<T>(args.grads, n, "grads");
  T* m = AsVector<T>(args.m, n, "m");
  T* v = AsVector<T>(args.v, n, "v");
  const T* born = args.born.empty() ? nullptr : AsVector<T>(args.born, n, "born");
  const auto update = [&](int64_t begin, int64_t end, const AdamWFactors& factors) {
    Simd<T>().adamw(values + begin, master + begin, grads + begin, m + begin, v + begin, factors,
                    end - begin);
  };
  const AdamWFactors from_start = FactorsAt(args, scale, args.step, 1);
  ParallelFor(n, kRange, [&](int64_t begin, int64_t end) {
    if (!born) return update(begin, end, from_start);
    for (int64_t run = begin; run < end;) {  // elements of one age in a row
      const T birth = born[run];
      int64_t run_end = run + 1;
      while (run_end < end && born[run_end] == birth) ++run_end;
      if (birth == T(0)) {
        update(run, run_end, from_start);
      } else {
        const int64_t age = args.step - static_cast<int64_t>(birth);
        CHECK_GE(age, 1) << "element " << run;
        const double ramp = age < args.growth_ramp
                                ? static_cast<double>(age) / static_cast<double>(args.growth_ramp)
                                : 1;
        update(run, run_end, FactorsAt(args, scale, age, ramp));
      }
      run = run_end;
    }
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
  DispatchFloat(args.values.dtype(), [&](auto t) { AdamWOf<decltype(t)>(wide, scale); });
}

void CpuBackend::SumOfSquares(const SumOfSquaresArgs& args, Stream&) {
  const SumOfSquaresArgs wide = {.in = Widened(args.in), .out = args.out};
  DispatchFloat(wide.in.dtype(), [&](auto t) { SumOfSquaresOf<decltype(t)>(wide); });
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

// Reductions and norms of rows. See simd_vector.h; what they compute is said in simd_kernels.h.
#pragma once

#include "kernels/cpu/simd_kernels.h"
#include "kernels/cpu/simd_vector.h"

namespace filigree {
namespace {

template <typename T>
T MaxRow(const T* x, int64_t n) {
  const T lowest = -__builtin_inf();
  Vec<T> max = Broadcast(lowest);
  ForEachVector<T>(n, [&](int64_t i, auto at) {
    const Vec<T> v = at.Get(x + i, lowest);
    max = v > max ? v : max;
  });
  return MaxLanes<T>(max);
}

// The sum over a row of value(offset, access), which is zero in lanes past the end.
template <typename T, typename Value>
inline __attribute__((always_inline)) T SumRow(int64_t n, const Value& value) {
  Vec<T> sum = {};
  ForEachVector<T>(n, [&](int64_t i, auto at) { sum += value(i, at); });
  return SumLanes<T>(sum);
}

template <typename T>
T DotRow(const T* a, const T* b, int64_t n) {
  return SumRow<T>(n, [&](int64_t i, auto at) { return at.Get(a + i) * at.Get(b + i); });
}

template <typename T>
T ExpSumRow(const T* x, T factor, T shift, T* out, int64_t n) {
  const T lowest = -__builtin_inf();  // its exponential is zero; factor > 0
  return SumRow<T>(n, [&](int64_t i, auto at) {
    const Vec<T> e = Exp(at.Get(x + i, lowest) * factor - shift);
    if (out != nullptr) at.Put(out + i, e);
    return e;
  });
}

template <typename T>
double SumOfSquaresRow(const T* x, int64_t n) {
  double sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int l = 0; l < 8; ++l) sums[l] += static_cast<double>(x[i + l]) * x[i + l];
  }
  for (; i < n; ++i) sums[0] += static_cast<double>(x[i]) * x[i];
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

inline float InverseSqrt(float x) { return 1.0f / __builtin_sqrtf(x); }
inline double InverseSqrt(double x) { return 1.0 / __builtin_sqrt(x); }

template <typename T>
void RmsNormRow(const T* x, const T* gain, T epsilon, T divisor, T* y, T* rstd, int64_t n) {
  const T r = InverseSqrt(DotRow<T>(x, x, n) / divisor + epsilon);
  *rstd = r;
  ForEachVector<T>(
      n, [&](int64_t i, auto at) { at.Put(y + i, at.Get(x + i) * r * at.Get(gain + i)); });
}

// With h = x rstd and g = dy gain: dx += rstd (g - h mean(g h)), dgain += dy h.
template <typename T>
void RmsNormBackwardRow(const T* x, const T* dy, const T* gain, T rstd, T divisor, T* dx, T* dgain,
                        int64_t n) {
  const T mean = rstd / divisor * SumRow<T>(n, [&](int64_t i, auto at) {
                   return at.Get(dy + i) * at.Get(gain + i) * at.Get(x + i);
                 });
  ForEachVector<T>(n, [&](int64_t i, auto at) {
    const Vec<T> h = at.Get(x + i) * rstd, d = at.Get(dy + i);
    at.Put(dx + i, at.Get(dx + i) + rstd * (d * at.Get(gain + i) - h * mean));
    at.Put(dgain + i, at.Get(dgain + i) + d * h);
  });
}

template <typename T>
void LayerNormRow(const T* x, const T* gain, const T* bias, T epsilon, T* y, T* mean, T* rstd,
                  int64_t n) {
  const T mu = SumRow<T>(n, [&](int64_t i, auto at) { return at.Get(x + i); }) / T(n);
  const T variance = SumRow<T>(n,
                               [&](int64_t i, auto at) {
                                 const Vec<T> d = at.Get(x + i, mu) - mu;
                                 return d * d;
                               }) /
                     T(n);
  const T r = InverseSqrt(variance + epsilon);
  *mean = mu;
  *rstd = r;
  ForEachVector<T>(n, [&](int64_t i, auto at) {
    at.Put(y + i, (at.Get(x + i) - mu) * r * at.Get(gain + i) + at.Get(bias + i));
  });
}

// With h = (x - mean) rstd and g = dy gain: dx += rstd (g - mean(g) - h mean(g h)).
template <typename T>
void LayerNormBackwardRow(const T* x, const T* dy, const T* gain, T mean, T rstd, T* dx, T* dgain,
                          T* dbias, int64_t n) {
  const T mean_g = DotRow<T>(dy, gain, n) / T(n);
  const T mean_gh = rstd / T(n) * SumRow<T>(n, [&](int64_t i, auto at) {
                      return at.Get(dy + i) * at.Get(gain + i) * (at.Get(x + i) - mean);
                    });
  ForEachVector<T>(n, [&](int64_t i, auto at) {
    const Vec<T> h = (at.Get(x + i) - mean) * rstd, d = at.Get(dy + i);
    at.Put(dx + i, at.Get(dx + i) + rstd * (d * at.Get(gain + i) - mean_g - h * mean_gh));
    at.Put(dgain + i, at.Get(dgain + i) + d * h);
    at.Put(dbias + i, at.Get(dbias + i) + d);
  });
}

}  // namespace
}  // namespace filigree

// Vectors of the instruction set that this translation unit is compiled for, and loops over rows.
//
// Included only by simd_baseline.cc, simd_avx2.cc and simd_avx512.cc. Everything lies in an
// unnamed namespace: an inline function shared between them could be linked from the one that this
// processor cannot run. For the same reason nothing here calls inline functions of std.
#pragma once

#include <cstdint>

namespace filigree {
namespace {

#if defined(__AVX512F__)
constexpr int64_t kVectorBytes = 64;
constexpr int64_t kTileRows = 8;
#elif defined(__AVX__)
constexpr int64_t kVectorBytes = 32;
constexpr int64_t kTileRows = 4;
#else
constexpr int64_t kVectorBytes = 16;
constexpr int64_t kTileRows = 4;
#endif

template <typename T>
struct VectorOf {
  typedef T Type __attribute__((vector_size(kVectorBytes)));
};
template <typename T>
using Vec = typename VectorOf<T>::Type;
template <typename T>
constexpr int64_t kLanes = kVectorBytes / static_cast<int64_t>(sizeof(T));

template <typename T>
inline Vec<T> Load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
template <typename T>
inline void Store(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof(v));
}
template <typename T>
inline Vec<T> Broadcast(T x) {
  return Vec<T>{} + x;
}

// How a loop body reads and writes a whole vector, and the last, partial one. Lanes past the end
// read as `fill` and are not written.
struct WholeAccess {
  template <typename T>
  Vec<T> Get(const T* p, T fill = 0) const {
    return Load(p);
  }
  template <typename T>
  void Put(T* p, Vec<T> v) const {
    Store(p, v);
  }
};
struct PartAccess {
  int64_t count;
  template <typename T>
  Vec<T> Get(const T* p, T fill = 0) const {
    Vec<T> v = Broadcast(fill);
    for (int64_t i = 0; i < count; ++i) v[i] = p[i];
    return v;
  }
  template <typename T>
  void Put(T* p, Vec<T> v) const {
    for (int64_t i = 0; i < count; ++i) p[i] = v[i];
  }
};

// Calls body(offset, access) for each vector of a row of n elements.
template <typename T, typename Body>
inline __attribute__((always_inline)) void ForEachVector(int64_t n, const Body& body) {
  int64_t i = 0;
  for (; i + kLanes<T> <= n; i += kLanes<T>) body(i, WholeAccess{});
  if (i < n) body(i, PartAccess{n - i});
}

template <typename T>
inline T SumLanes(Vec<T> v) {
  T sum = 0;
  for (int64_t l = 0; l < kLanes<T>; ++l) sum += v[l];
  return sum;
}
template <typename T>
inline T MaxLanes(Vec<T> v) {
  T max = v[0];
  for (int64_t l = 1; l < kLanes<T>; ++l) max = v[l] > max ? v[l] : max;
  return max;
}

inline Vec<double> Sqrt(Vec<double> v) {
  for (int64_t l = 0; l < kLanes<double>; ++l) v[l] = __builtin_sqrt(v[l]);
  return v;
}
inline Vec<float> Sqrt(Vec<float> v) {
  for (int64_t l = 0; l < kLanes<float>; ++l) v[l] = __builtin_sqrtf(v[l]);
  return v;
}

// Double precision serves the gradient tests, where accuracy counts and time does not.
inline Vec<double> Exp(Vec<double> v) {
  for (int64_t l = 0; l < kLanes<double>; ++l) v[l] = __builtin_exp(v[l]);
  return v;
}

// exp to about 1 ulp: x = n ln 2 + r with |r| <= ln(2) / 2, a polynomial for exp(r) (the
// coefficients of Cephes' expf), and n added to the exponent. Below -87.33 the result is 0, above
// 88.72 infinite; NaN stays NaN.
inline Vec<float> Exp(Vec<float> x) {
  typedef int32_t IntVec __attribute__((vector_size(kVectorBytes)));
  constexpr float kLow = -87.33654f, kHigh = 88.72283f;
  // Adding 1.5 * 2^23 leaves a float's integer part, rounded to nearest, in its low bits.
  constexpr float kRound = 12582912.0f;
  const Vec<float> clamped = x < kLow ? Broadcast(kLow) : (x > kHigh ? Broadcast(kHigh) : x);
  const Vec<float> shifted = clamped * 1.44269504088896341f + kRound;
  const Vec<float> n = shifted - kRound;
  Vec<float> r = clamped - n * 0.693359375f;
  r -= n * -2.12194440e-4f;
  Vec<float> p = Broadcast(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // 2^n in two halves, so that n = 128 does not overflow on the way.
  const IntVec exponent =
      reinterpret_cast<IntVec>(shifted) - reinterpret_cast<IntVec>(Broadcast(kRound));
  const IntVec half = exponent >> 1;
  const Vec<float> low = reinterpret_cast<Vec<float>>((half + 127) << 23);
  const Vec<float> high = reinterpret_cast<Vec<float>>((exponent - half + 127) << 23);
  const Vec<float> result = p * low * high;
  const Vec<float> infinity = Broadcast(__builtin_inff());
  return x < kLow ? Vec<float>{} : (x > kHigh ? infinity : result);
}

}  // namespace
}  // namespace filigree

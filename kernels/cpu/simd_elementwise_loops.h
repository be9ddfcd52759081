// Elementwise loops over rows. See simd_vector.h; what they compute is said in simd_kernels.h.
#pragma once

#include "kernels/cpu/simd_kernels.h"
#include "kernels/cpu/simd_vector.h"

namespace filigree {
namespace {

template <typename T>
void AddRow(const T* a, const T* b, T* out, int64_t n) {
  ForEachVector<T>(n, [&](int64_t i, auto at) { at.Put(out + i, at.Get(a + i) + at.Get(b + i)); });
}

template <typename T>
void ScaleRow(T* x, T factor, int64_t n) {
  ForEachVector<T>(n, [&](int64_t i, auto at) { at.Put(x + i, at.Get(x + i) * factor); });
}

template <typename T>
inline Vec<T> Sigmoid(Vec<T> x) {
  return T(1) / (T(1) + Exp(-x));
}

template <typename T>
void SwiGluRow(const T* gate, const T* up, T* y, int64_t n) {
  ForEachVector<T>(n, [&](int64_t i, auto at) {
    const Vec<T> g = at.Get(gate + i);
    at.Put(y + i, g * Sigmoid<T>(g) * at.Get(up + i));
  });
}

template <typename T>
void SwiGluBackwardRow(const T* gate, const T* up, const T* dy, T* dgate, T* dup, int64_t n) {
  ForEachVector<T>(n, [&](int64_t i, auto at) {
    const Vec<T> g = at.Get(gate + i), u = at.Get(up + i), d = at.Get(dy + i);
    const Vec<T> s = Sigmoid<T>(g);
    at.Put(dgate + i, d * u * s * (T(1) + g * (T(1) - s)));
    at.Put(dup + i, d * g * s);
  });
}

template <typename T>
void SiluRow(const T* x, T* y, int64_t n) {
  ForEachVector<T>(n, [&](int64_t i, auto at) {
    const Vec<T> v = at.Get(x + i);
    at.Put(y + i, v * Sigmoid<T>(v));
  });
}

template <typename T>
void SiluBackwardRow(const T* x, const T* dy, T* dx, int64_t n) {
  ForEachVector<T>(n, [&](int64_t i, auto at) {
    const Vec<T> v = at.Get(x + i), s = Sigmoid<T>(v);
    at.Put(dx + i, at.Get(dy + i) * s * (T(1) + v * (T(1) - s)));
  });
}

// gelu(x) = x/2 (1 + tanh(u)) = x sigmoid(2u) with u = sqrt(2/pi) (x + 0.044715 x^3).
template <typename T>
constexpr T kGeluSlope = T(2 * 0.79788456080286535588);
template <typename T>
constexpr T kGeluCubic = T(0.044715);

template <typename T>
void GeluRow(const T* x, T* y, int64_t n) {
  ForEachVector<T>(n, [&](int64_t i, auto at) {
    const Vec<T> v = at.Get(x + i);
    at.Put(y + i, v * Sigmoid<T>(kGeluSlope<T> * v * (T(1) + kGeluCubic<T> * v * v)));
  });
}

template <typename T>
void GeluBackwardRow(const T* x, const T* dy, T* dx, int64_t n) {
  ForEachVector<T>(n, [&](int64_t i, auto at) {
    const Vec<T> v = at.Get(x + i), cubic = kGeluCubic<T> * v * v;
    const Vec<T> s = Sigmoid<T>(kGeluSlope<T> * v * (T(1) + cubic));
    const Vec<T> slope = kGeluSlope<T> * (T(1) + T(3) * cubic);
    at.Put(dx + i, at.Get(dy + i) * (s + v * s * (T(1) - s) * slope));
  });
}

template <typename T>
void RotateRow(T* a, T* b, const T* cos, const T* sin, T sign, int64_t n) {
  ForEachVector<T>(n, [&](int64_t i, auto at) {
    const Vec<T> x = at.Get(a + i), y = at.Get(b + i);
    const Vec<T> c = at.Get(cos + i), s = at.Get(sin + i) * sign;
    at.Put(a + i, x * c - y * s);
    at.Put(b + i, y * c + x * s);
  });
}

template <typename T>
void SoftmaxBackwardRow(const T* p, T* dp, T delta, T factor, int64_t n) {
  ForEachVector<T>(n, [&](int64_t i, auto at) {
    at.Put(dp + i, at.Get(p + i) * (at.Get(dp + i) - delta) * factor);
  });
}

template <typename T>
void AdamWRow(T* values, T* master, const T* grads, T* m, T* v, const AdamWFactors& f, int64_t n) {
  const T scale = T(f.grad_scale), beta1 = T(f.beta1), beta2 = T(f.beta2);
  const T rest1 = T(1 - f.beta1), rest2 = T(1 - f.beta2);
  const T correction1 = T(f.correction1), correction2 = T(f.correction2);
  const T lr = T(f.lr), epsilon = T(f.epsilon), weight_decay = T(f.weight_decay);
  ForEachVector<T>(n, [&](int64_t i, auto at) {
    const Vec<T> g = at.Get(grads + i) * scale, w = at.Get(master + i);
    const Vec<T> m1 = at.Get(m + i) * beta1 + g * rest1;
    const Vec<T> v1 = at.Get(v + i) * beta2 + g * g * rest2;
    const Vec<T> direction = m1 * correction1 / (Sqrt(v1 * correction2) + epsilon);
    const Vec<T> updated = w - lr * (direction + weight_decay * w);
    at.Put(m + i, m1);
    at.Put(v + i, v1);
    at.Put(master + i, updated);
    at.Put(values + i, updated);
  });
}

}  // namespace
}  // namespace filigree

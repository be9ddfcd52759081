// The inner loops of the CPU backend: one table of functions for each instruction set and element
// type (float, double), chosen when first used by what the processor has.
// FILIGREE_CPU_ISA=baseline, avx2 or avx512 in the environment asks for a lower one, to repeat
// another machine's results.
//
// The bodies are written once over GCC vectors (simd_vector.h and the simd_*_loops.h) and compiled
// once for each instruction set (simd_baseline.cc, simd_avx2.cc, simd_avx512.cc), so the build is
// portable and needs no -march. Rows are contiguous, of any length n >= 0 and any alignment.
// Sums keep one partial sum a lane, so they depend on the instruction set, and on nothing else.
#pragma once

#include <cstdint>

namespace filigree {

// A small product summed over terms: tile[tile_rows, vectors * lanes] = sum of A * B, where
// A(i, k) = a[i * a_row + k * a_depth] and B(k, j) = b[k * b_row + j].
template <typename T>
struct TileTerm {
  const T* a;
  const T* b;
  int64_t depth;
};
template <typename T>
struct TileProductArgs {
  const TileTerm<T>* terms;
  int64_t term_count;
  int64_t a_first, b_first;  // added to every term's a and b: where the tile begins
  int64_t a_row, a_depth, b_row;
  int vectors;  // 1 or 2
  T* tile;
};

struct AdamWFactors {
  double grad_scale, lr, beta1, beta2, epsilon, weight_decay;
  double correction1, correction2;  // 1 / (1 - beta^step)
};

template <typename T>
struct SimdKernels {
  // ---- Small products (block-sparse operations).
  int64_t lanes;
  int64_t tile_rows;
  void (*tile_product)(const TileProductArgs<T>& args);

  // ---- Elementwise; an output may be the same memory as an input.
  void (*add)(const T* a, const T* b, T* out, int64_t n);
  void (*scale)(T* x, T factor, int64_t n);
  void (*swiglu)(const T* gate, const T* up, T* y, int64_t n);
  void (*swiglu_backward)(const T* gate, const T* up, const T* dy, T* dgate, T* dup, int64_t n);
  void (*silu)(const T* x, T* y, int64_t n);
  void (*silu_backward)(const T* x, const T* dy, T* dx, int64_t n);
  void (*gelu)(const T* x, T* y, int64_t n);
  void (*gelu_backward)(const T* x, const T* dy, T* dx, int64_t n);
  // (a, b) turned: (a cos - b sin, b cos + a sin); sign -1 turns back.
  void (*rotate)(T* a, T* b, const T* cos, const T* sin, T sign, int64_t n);
  // ds = p * (dp - delta) * factor, into dp.
  void (*softmax_backward)(const T* p, T* dp, T delta, T factor, int64_t n);
  void (*adamw)(T* values, T* master, const T* grads, T* m, T* v, const AdamWFactors& factors,
                int64_t n);

  // ---- Reductions over a row.
  T (*max)(const T* x, int64_t n);  // -inf for n = 0; NaN may be missed
  T (*dot)(const T* a, const T* b, int64_t n);
  // out = exp(x * factor - shift), and the sum of it; out may be x, or null.
  T (*exp_sum)(const T* x, T factor, T shift, T* out, int64_t n);
  double (*sum_of_squares)(const T* x, int64_t n);  // in double

  // ---- Norms of one row; backward adds into dx, dgain and dbias. `divisor` makes sums means.
  void (*rms_norm)(const T* x, const T* gain, T epsilon, T divisor, T* y, T* rstd, int64_t n);
  void (*rms_norm_backward)(const T* x, const T* dy, const T* gain, T rstd, T divisor, T* dx,
                            T* dgain, int64_t n);
  void (*layer_norm)(const T* x, const T* gain, const T* bias, T epsilon, T* y, T* mean, T* rstd,
                     int64_t n);
  void (*layer_norm_backward)(const T* x, const T* dy, const T* gain, T mean, T rstd, T* dx,
                              T* dgain, T* dbias, int64_t n);
};

// The table for this processor; T is float or double.
template <typename T>
const SimdKernels<T>& Simd();

// Random numbers (draw_loops.h), the same bits with every instruction set: out[i] = scale times the
// number of counter {stream, cells[i]} under the key `seed`, rounded to float.
struct DrawArgs {
  uint64_t seed, stream;
  double scale;
  const int64_t* cells;
  float* out;
  int64_t count;
};
struct DrawKernels {
  void (*normals)(const DrawArgs& args);   // standard
  void (*uniforms)(const DrawArgs& args);  // in [-1, 1)
};
const DrawKernels& SimdDraws();

}  // namespace filigree

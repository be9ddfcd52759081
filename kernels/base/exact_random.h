// Philox4x32-10 (Salmon et al., SC 2011) and what turns its words to numbers, in the same bits
// wherever it runs: on the host with any instruction set, in vectors or one by one, and on a GPU.
// Callers other than backends take kernels/base/rng.h.
//
// Numbers are made by operations alone that IEEE 754 rounds correctly (+, -, *, / and the square
// root), and no two of them may be fused: host code that makes numbers is compiled with
// -ffp-contract=off, device code asks for each rounding by name. The logarithm and the cosine are
// therefore power series, as long as a double needs; the C library's differ between its versions and
// between processors.
//
// Everything is inlined by force: a copy shared between files that are compiled for different
// processors could be linked from the one that this processor cannot run.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FILIGREE_EXACT __host__ __device__ __forceinline__
#define FILIGREE_UNROLL _Pragma("unroll")
#else
#define FILIGREE_EXACT inline __attribute__((always_inline))
#define FILIGREE_UNROLL _Pragma("GCC unroll 16")
#endif

namespace filigree::exact {

#ifdef __CUDA_ARCH__
FILIGREE_EXACT double Add(double a, double b) { return __dadd_rn(a, b); }
FILIGREE_EXACT double Multiply(double a, double b) { return __dmul_rn(a, b); }
FILIGREE_EXACT double Divide(double a, double b) { return __ddiv_rn(a, b); }
FILIGREE_EXACT double SquareRoot(double a) { return __dsqrt_rn(a); }
#else
FILIGREE_EXACT double Add(double a, double b) { return a + b; }
FILIGREE_EXACT double Multiply(double a, double b) { return a * b; }
FILIGREE_EXACT double Divide(double a, double b) { return a / b; }
FILIGREE_EXACT double SquareRoot(double a) { return __builtin_sqrt(a); }
#endif
FILIGREE_EXACT double FromBits(uint64_t bits) { return __builtin_bit_cast(double, bits); }
FILIGREE_EXACT uint64_t BitsOf(double number) { return __builtin_bit_cast(uint64_t, number); }

// Four independent words for a 128-bit counter {stream, index} under the key `seed`.
struct Words {
  uint32_t w0, w1, w2, w3;
};
FILIGREE_EXACT Words Philox(uint64_t seed, uint64_t stream, uint64_t index) {
  Words c = {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
             static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)};
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
FILIGREE_UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c.w0;
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * c.w2;
    c = {static_cast<uint32_t>(p1 >> 32) ^ c.w1 ^ k0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c.w3 ^ k1, static_cast<uint32_t>(p0)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// c[0] + c[1] z + ... + c[kTerms - 1] z^(kTerms - 1)
template <int kTerms>
FILIGREE_EXACT double Series(const double (&c)[kTerms], double z) {
  double sum = c[kTerms - 1];
FILIGREE_UNROLL
  for (int i = kTerms - 2; i >= 0; --i) sum = Add(Multiply(sum, z), c[i]);
  return sum;
}

// An integer below 2^52 as a double, without an instruction that some vectors lack.
FILIGREE_EXACT double FromInteger(uint64_t integer) {
  constexpr uint64_t kTwoTo52 = 0x4330000000000000u;
  return Add(FromBits(kTwoTo52 | integer), -0x1.0p52);
}

// The upper 53 bits of two words, as an integer in [0, 2^53).
FILIGREE_EXACT double Integer53(uint32_t low, uint32_t high) {
  const uint32_t low32 = (low >> 11) | (high << 21);
  return Add(Multiply(FromInteger(high >> 11), 0x1.0p32), FromInteger(low32));
}

// log(u) of a normal number. u = 2^e m with m in [sqrt(1/2), sqrt(2)), and log(m) = 2 artanh(s),
// s = (m - 1) / (m + 1), |s| < 0.1716.
FILIGREE_EXACT double Log(double u) {
  constexpr double kArtanh[] = {1.0,      1.0 / 3,  1.0 / 5,  1.0 / 7,  1.0 / 9, 1.0 / 11,
                                1.0 / 13, 1.0 / 15, 1.0 / 17, 1.0 / 19, 1.0 / 21};
  constexpr double kLog2 = 0x1.62e42fefa39efp-1;
  constexpr uint64_t kRootHalf = 0x3fe6a09e00000000u, kOne = 0x3ff0000000000000u;
  constexpr uint64_t kFraction = 0x000fffffffffffffu;
  const uint64_t shifted = BitsOf(u) + (kOne - kRootHalf);
  const double exponent = Add(FromInteger(shifted >> 52), -1023.0);
  const double m = FromBits((shifted & kFraction) + kRootHalf);
  const double s = Divide(Add(m, -1.0), Add(m, 1.0));
  const double artanh = Multiply(s, Series(kArtanh, Multiply(s, s)));
  return Add(Multiply(exponent, kLog2), Add(artanh, artanh));
}

// cos(2 pi a), a in [0, 1): a quarter turn at a time, the rest of the angle in [-pi/4, pi/4].
FILIGREE_EXACT double CosineOfTurns(double a) {
  constexpr double kCosine[] = {1.0,
                                -1.0 / 2,
                                1.0 / 24,
                                -1.0 / 720,
                                1.0 / 40320,
                                -1.0 / 3628800,
                                1.0 / 479001600,
                                -1.0 / 87178291200,
                                1.0 / 20922789888000};
  constexpr double kSine[] = {1.0,
                              -1.0 / 6,
                              1.0 / 120,
                              -1.0 / 5040,
                              1.0 / 362880,
                              -1.0 / 39916800,
                              1.0 / 6227020800,
                              -1.0 / 1307674368000,
                              1.0 / 355687428096000};
  constexpr double kHalfPi = 0x1.921fb54442d18p0;
  constexpr double kRound = 0x1.8p52;  // added, it leaves the nearest integer in the low bits
  const double quarters = Multiply(4.0, a);
  const double shifted = Add(quarters, kRound);
  const uint64_t quarter = BitsOf(shifted);
  const double x = Multiply(Add(quarters, -Add(shifted, -kRound)), kHalfPi);
  const double z = Multiply(x, x);
  const double cosine = Series(kCosine, z), sine = Multiply(x, Series(kSine, z));
  const double size = quarter & 1 ? sine : cosine;
  return FromBits(BitsOf(size) ^ (((quarter + 1) & 2) << 62));
}

// Uniform in [0, 1), 53 bits of two words.
FILIGREE_EXACT double UnitUniform(uint32_t low, uint32_t high) {
  return Multiply(Integer53(low, high), 0x1.0p-53);
}

// Uniform in [-1, 1).
FILIGREE_EXACT double Uniform(const Words& w) {
  return Add(Multiply(2.0, UnitUniform(w.w0, w.w1)), -1.0);
}

// Standard normal (Box-Muller). The logarithm gets a number in (0, 1].
FILIGREE_EXACT double Normal(const Words& w) {
  const double u = Multiply(Add(Integer53(w.w0, w.w1), 1.0), 0x1.0p-53);
  return Multiply(SquareRoot(Multiply(-2.0, Log(u))), CosineOfTurns(UnitUniform(w.w2, w.w3)));
}

}  // namespace filigree::exact

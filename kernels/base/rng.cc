#include "kernels/base/rng.h"

#include <cmath>
#include <numbers>

#include "kernels/base/check.h"

namespace filigree {
namespace {

constexpr uint32_t kMultiplier0 = 0xD2511F53u, kMultiplier1 = 0xCD9E8D57u;
constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;
constexpr int kFeistelRounds = 6;

// The finaliser of MurmurHash3: spreads FNV's weak high bits.
uint64_t Mix(uint64_t x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdull;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ull;
  return x ^ (x >> 33);
}

uint64_t Fnv1a(std::string_view text, uint64_t hash) {
  for (unsigned char c : text) hash = (hash ^ c) * 0x100000001b3ull;
  return hash;
}

}  // namespace

std::array<uint32_t, 4> Philox4x32(uint64_t seed, uint64_t stream, uint64_t index) {
  std::array<uint32_t, 4> c = {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                               static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)};
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(kMultiplier0) * c[0];
    const uint64_t p1 = static_cast<uint64_t>(kMultiplier1) * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
    k0 += kWeyl0;
    k1 += kWeyl1;
  }
  return c;
}

uint64_t RngStream(std::string_view purpose, std::string_view name, uint64_t number) {
  uint64_t hash = Fnv1a(purpose, 0xcbf29ce484222325ull);
  hash = Fnv1a(name, (hash ^ 0xff) * 0x100000001b3ull);
  return Mix(hash ^ Mix(number + 0x9e3779b97f4a7c15ull));
}

uint64_t RandomBits(uint64_t seed, uint64_t stream, uint64_t index) {
  const auto words = Philox4x32(seed, stream, index);
  return (static_cast<uint64_t>(words[1]) << 32) | words[0];
}

double RandomUniform(uint64_t seed, uint64_t stream, uint64_t index) {
  return static_cast<double>(RandomBits(seed, stream, index) >> 11) * 0x1.0p-53;
}

uint64_t RandomBelow(uint64_t seed, uint64_t stream, uint64_t index, uint64_t bound) {
  CHECK_GE(bound, 1u);
  const unsigned __int128 product =
      static_cast<unsigned __int128>(RandomBits(seed, stream, index)) * bound;
  return static_cast<uint64_t>(product >> 64);
}

double RandomNormal(uint64_t seed, uint64_t stream, uint64_t index) {
  const auto w = Philox4x32(seed, stream, index);
  // (0, 1]: the logarithm must not see zero.
  const double u =
      (static_cast<double>(((static_cast<uint64_t>(w[1]) << 32) | w[0]) >> 11) + 1.0) * 0x1.0p-53;
  const double angle =
      static_cast<double>(((static_cast<uint64_t>(w[3]) << 32) | w[2]) >> 11) * 0x1.0p-53;
  return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * angle);
}

RandomPermutation::RandomPermutation(uint64_t seed, uint64_t stream, uint64_t size)
    : seed_(seed), stream_(stream), size_(size), half_bits_(1) {
  CHECK_GE(size, 1u);
  while (half_bits_ < 32 && (1ull << (2 * half_bits_)) < size) ++half_bits_;
}

uint64_t RandomPermutation::operator()(uint64_t index) const {
  CHECK_LT(index, size_);
  const uint64_t mask = (1ull << half_bits_) - 1;
  uint64_t x = index;
  do {  // cycle walking: at most four tries on average, since the domain is under 4 * size
    uint64_t left = x >> half_bits_, right = x & mask;
    for (int round = 0; round < kFeistelRounds; ++round) {
      const uint64_t key = RandomBits(seed_, stream_ + static_cast<uint64_t>(round), right);
      const uint64_t next = left ^ (key & mask);
      left = right;
      right = next;
    }
    x = (left << half_bits_) | right;
  } while (x >= size_);
  return x;
}

}  // namespace filigree

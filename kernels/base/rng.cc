#include "kernels/base/rng.h"

#include "kernels/base/check.h"
#include "kernels/base/exact_random.h"

namespace filigree {
namespace {

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
  const exact::Words words = exact::Philox(seed, stream, index);
  return {words.w0, words.w1, words.w2, words.w3};
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
  const exact::Words words = exact::Philox(seed, stream, index);
  return exact::UnitUniform(words.w0, words.w1);
}

uint64_t RandomBelow(uint64_t seed, uint64_t stream, uint64_t index, uint64_t bound) {
  CHECK_GE(bound, 1u);
  const unsigned __int128 product =
      static_cast<unsigned __int128>(RandomBits(seed, stream, index)) * bound;
  return static_cast<uint64_t>(product >> 64);
}

double RandomNormal(uint64_t seed, uint64_t stream, uint64_t index) {
  return exact::Normal(exact::Philox(seed, stream, index));
}

double CellDraw::operator()(uint64_t cell) const {
  const exact::Words words = exact::Philox(seed, stream, cell);
  return exact::Multiply(scale, kind == DrawKind::kNormal ? exact::Normal(words)
                                                                      : exact::Uniform(words));
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

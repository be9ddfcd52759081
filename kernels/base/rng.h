// Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011).
//
// Every random quantity of a run is a pure function of (seed, stream, index), so there is no
// generator state to save, to restore wrongly, or to share between ranks. `stream` says what the
// number is for: build it with RngStream("init", parameter_name) or the like.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace filigree {

// Four independent 32-bit words for a 128-bit counter {stream, index} under the key `seed`.
std::array<uint32_t, 4> Philox4x32(uint64_t seed, uint64_t stream, uint64_t index);

// A 64-bit stream number from a purpose and a name (FNV-1a followed by a finaliser).
uint64_t RngStream(std::string_view purpose, std::string_view name = {}, uint64_t number = 0);

// 64 random bits.
uint64_t RandomBits(uint64_t seed, uint64_t stream, uint64_t index);
// Uniform in [0, 1), 53 bits.
double RandomUniform(uint64_t seed, uint64_t stream, uint64_t index);
// Uniform integer in [0, bound), bound >= 1; bias below 2^-64 * bound.
uint64_t RandomBelow(uint64_t seed, uint64_t stream, uint64_t index, uint64_t bound);
// Standard normal (Box-Muller). Like all numbers of this header the same bits on every processor.
double RandomNormal(uint64_t seed, uint64_t stream, uint64_t index);

// A number for each cell of an array, `scale` times one of the distribution. Backends draw many at
// once (StateOps::DrawStored).
enum class DrawKind { kNormal, kUniform };  // standard normal; uniform in [-1, 1)
struct CellDraw {
  DrawKind kind = DrawKind::kNormal;
  double scale = 1;
  uint64_t seed = 0, stream = 0;

  double operator()(uint64_t cell) const;
};

// A keyed pseudo-random permutation of [0, size): a bijection evaluated point by point, without
// memory (Feistel network with cycle walking). Used for data order and for drawing without
// replacement.
class RandomPermutation {
 public:
  RandomPermutation(uint64_t seed, uint64_t stream, uint64_t size);
  uint64_t operator()(uint64_t index) const;
  uint64_t size() const { return size_; }

 private:
  uint64_t seed_, stream_, size_;
  int half_bits_;
};

}  // namespace filigree

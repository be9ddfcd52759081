// AdamW on state that is held in fewer bytes: BF16 weights and moments, 8-bit moments. Each block
// of 256 elements is brought to fp32, updated there, and rounded back.
#include <algorithm>

#include "kernels/cpu/adamw_elements.h"
#include "kernels/cpu/matrix.h"
#include "kernels/cpu/parallel.h"

namespace filigree {
namespace {

constexpr int64_t kBlock = kQuantizationBlock;
constexpr int64_t kBlocksWorthAThread = 16;

// The numbers of BF16 that `count` fp32 become, from element `begin` of the call on.
template <typename Store>
void RoundBlock(const float* from, int64_t begin, int64_t count,
                std::span<const RoundedRange> ranges, RoundedNumber number, const Store& store) {
  for (int64_t i = 0; i < count; i += 8) {
    const RoundedRange& range = RangeOf(ranges, begin + i);
    const auto bits = RoundingBits(range.key, number, range.GroupOf(begin + i));
    for (int64_t k = i; k < std::min(i + 8, count); ++k) {
      store(k, RoundStochastically(from[k], bits[k - i]));
    }
  }
}

// One moment of the elements of a call, in whichever form it is held.
class Moment {
 public:
  Moment(const TensorView& held, const TensorView& scales, QuantizationMap map,
         RoundedNumber number, std::span<const RoundedRange> ranges, int64_t n)
      : map_(map), number_(number), ranges_(ranges) {
    if (held.dtype() == DType::kU8) {
      codes_ = AsVector<uint8_t>(held, n, "m or v");
      scales_ = AsVector<float>(scales, CeilDiv(n, kBlock), "m_scale or v_scale");
    } else if (held.dtype() == DType::kBF16) {
      halves_ = AsVector<BFloat16>(held, n, "m or v");
    } else {
      floats_ = AsVector<float>(held, n, "m or v");
    }
  }

  void Read(int64_t begin, int64_t count, float* to) const {
    if (codes_) DequantizeBlocks(map_, codes_ + begin, scales_ + begin / kBlock, count, to);
    if (floats_) std::copy_n(floats_ + begin, count, to);
    for (int64_t i = 0; halves_ && i < count; ++i) to[i] = static_cast<float>(halves_[begin + i]);
  }
  void Write(int64_t begin, int64_t count, const float* from) const {
    if (codes_) QuantizeBlocks(map_, from, count, codes_ + begin, scales_ + begin / kBlock);
    if (floats_) std::copy_n(from, count, floats_ + begin);
    if (!halves_) return;
    RoundBlock(from, begin, count, ranges_, number_,
               [&](int64_t i, BFloat16 rounded) { halves_[begin + i] = rounded; });
  }

 private:
  const QuantizationMap map_;
  const RoundedNumber number_;
  const std::span<const RoundedRange> ranges_;
  uint8_t* codes_ = nullptr;
  float* scales_ = nullptr;
  BFloat16* halves_ = nullptr;
  float* floats_ = nullptr;
};

}  // namespace

void AdamWCompact(const AdamWArgs& args, double scale) {
  const int64_t n = args.values.size();
  CheckRounding(args);
  float* values = AsVector<float>(args.values, n, "values");
  float* master = args.master.empty() ? nullptr : AsVector<float>(args.master, n, "master");
  const float* grads = AsVector<float>(args.grads, n, "grads");
  const float* born = args.born.empty() ? nullptr : AsVector<float>(args.born, n, "born");
  const Moment m(args.m, args.m_scale, QuantizationMap::kSigned, RoundedNumber::kM, args.rounding,
                 n);
  const Moment v(args.v, args.v_scale, QuantizationMap::kUnsigned, RoundedNumber::kV, args.rounding,
                 n);
  const AdamWElements<float> elements(args, scale);
  const auto update = [&](int64_t begin, int64_t count) {
    float block_m[kBlock], block_v[kBlock], rounded[kBlock];
    m.Read(begin, count, block_m);
    v.Read(begin, count, block_v);
    const float* births = born ? born + begin : nullptr;
    float* weights = master ? master + begin : rounded;
    if (!master) std::copy_n(values + begin, count, rounded);
    elements.Update(values + begin, weights, grads + begin, block_m, block_v, births, count);
    m.Write(begin, count, block_m);
    v.Write(begin, count, block_v);
    if (master) return;
    RoundBlock(rounded, begin, count, args.rounding, RoundedNumber::kWeight,
               [&](int64_t i, BFloat16 w) { values[begin + i] = static_cast<float>(w); });
  };
  ParallelFor(CeilDiv(n, kBlock), kBlocksWorthAThread, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) {
      update(block * kBlock, std::min(kBlock, n - block * kBlock));
    }
  });
}

}  // namespace filigree

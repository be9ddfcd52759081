// State in fewer bytes: 8-bit moments and stochastic rounding, as kernels/base defines them and as
// the CPU's AdamW uses them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/base/block_quantization.h"
#include "kernels/base/stochastic_rounding.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_device.h"
#include "trainer/checkpoint/safetensors.h"

namespace filigree {
namespace {

std::vector<float> Normal(int64_t count, uint64_t seed, double scale) {
  std::vector<float> values(count);
  for (int64_t i = 0; i < count; ++i) {
    values[i] = static_cast<float>(scale * RandomNormal(seed, RngStream("test"), i));
  }
  return values;
}

template <typename T>
TensorView ViewOf(std::vector<T>& values) {
  return TensorView(values.data(), DTypeOf<T>::value, {static_cast<int64_t>(values.size())});
}

struct Quantized {
  explicit Quantized(int64_t count)
      : codes(count), scales((count + kQuantizationBlock - 1) / kQuantizationBlock) {}
  Quantized(QuantizationMap map, const std::vector<float>& values)
      : Quantized(static_cast<int64_t>(values.size())) {
    QuantizeBlocks(map, values.data(), codes.size(), codes.data(), scales.data());
  }
  std::vector<float> Values(QuantizationMap map) const {
    std::vector<float> values(codes.size());
    DequantizeBlocks(map, codes.data(), scales.data(), codes.size(), values.data());
    return values;
  }
  bool operator==(const Quantized&) const = default;

  std::vector<uint8_t> codes;
  std::vector<float> scales;
};

TEST(BlockQuantizationTest, EntriesAreThePapers) {
  for (const QuantizationTables* tables : {&kSignedTables, &kUnsignedTables}) {
    EXPECT_TRUE(std::is_sorted(tables->entries, tables->entries + 256));
    EXPECT_EQ(tables->entries[255], 1.0f);
  }
  EXPECT_EQ(kSignedTables.entries[127], 0.0f);
  EXPECT_EQ(kUnsignedTables.entries[0], 0.0f);
  // One cell in the lowest decade, 64 (unsigned: 128) in the highest.
  EXPECT_FLOAT_EQ(kSignedTables.entries[128], 0.55e-6f);
  EXPECT_FLOAT_EQ(kSignedTables.entries[126], -0.55e-6f);
  EXPECT_FLOAT_EQ(kSignedTables.entries[254], 0.1f + 0.9f * 127 / 128);
  EXPECT_FLOAT_EQ(kUnsignedTables.entries[1], 0.325e-6f);
  EXPECT_FLOAT_EQ(kUnsignedTables.entries[254], 0.1f + 0.9f * 255 / 256);
}

TEST(BlockQuantizationTest, ACodeIsTheNearestEntry) {
  for (const QuantizationMap map : {QuantizationMap::kSigned, QuantizationMap::kUnsigned}) {
    const float* entries =
        (map == QuantizationMap::kSigned ? kSignedTables : kUnsignedTables).entries;
    std::vector<float> values = Normal(kQuantizationBlock * 40, 3, 0.1);
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] *= std::pow(10.0f, -static_cast<float>(i % 7));
      if (map == QuantizationMap::kUnsigned) values[i] = std::fabs(values[i]);
    }
    for (size_t i = 0; i < values.size(); i += kQuantizationBlock) values[i] = 1;  // the scale
    const Quantized quantized(map, values);
    for (size_t i = 0; i < values.size(); ++i) {
      double nearest = 2;
      for (int code = 0; code < 256; ++code) {
        nearest = std::min(nearest, std::fabs(static_cast<double>(entries[code]) - values[i]));
      }
      EXPECT_LE(std::fabs(static_cast<double>(entries[quantized.codes[i]]) - values[i]),
                nearest + 1e-8)
          << values[i];
    }
  }
}

// What makes checkpoints of plain numbers resume bit for bit.
TEST(BlockQuantizationTest, QuantisingAgainChangesNothing) {
  for (const double scale : {1e-29, 1e-12, 1.0, 1e20}) {
    std::vector<float> values = Normal(1000, 7, scale);  // a last block of 232
    for (int i = 0; i < 256; ++i) values[i] = -std::fabs(values[i]);
    const Quantized once(QuantizationMap::kSigned, values);
    EXPECT_EQ(once, Quantized(QuantizationMap::kSigned, once.Values(QuantizationMap::kSigned)));
    EXPECT_EQ(once.scales[0], *std::min_element(values.begin(), values.begin() + 256));
    for (float& value : values) value = std::fabs(value);
    const Quantized squares(QuantizationMap::kUnsigned, values);
    EXPECT_EQ(squares,
              Quantized(QuantizationMap::kUnsigned, squares.Values(QuantizationMap::kUnsigned)));
  }
  const std::vector<float> tiny(300, 1e-31f);
  EXPECT_EQ(Quantized(QuantizationMap::kSigned, tiny).Values(QuantizationMap::kSigned),
            std::vector<float>(300, 0.0f));
}

// Over all random bits the mean of the results is the number itself, exactly.
TEST(StochasticRoundingTest, IsUnbiased) {
  for (const float value : {1.0f, 1.00390625f, -3.14159f, 1e-30f, 7.7e20f, 0.0f}) {
    double sum = 0;
    for (uint32_t bits = 0; bits < 65536; ++bits) {
      sum += static_cast<double>(static_cast<float>(RoundStochastically(value, bits)));
    }
    EXPECT_EQ(sum / 65536, value);
  }
  EXPECT_TRUE(std::isinf(
      static_cast<float>(RoundStochastically(std::numeric_limits<float>::infinity(), 65535))));
  EXPECT_TRUE(std::isnan(static_cast<float>(RoundStochastically(std::nanf(""), 65535))));
}

TEST(StochasticRoundingTest, BitsAreUniformAndDifferByElementNumberAndUpdate) {
  std::vector<uint32_t> bits;
  for (const uint64_t stream : {1, 2}) {
    for (const RoundedNumber number :
         {RoundedNumber::kWeight, RoundedNumber::kM, RoundedNumber::kV}) {
      for (int64_t group = 0; group < 4096; ++group) {
        for (const uint32_t b : RoundingBits({.seed = 5, .stream = stream}, number, group)) {
          bits.push_back(b);
        }
      }
    }
  }
  double sum = 0;
  for (const uint32_t b : bits) sum += b;
  const double n = static_cast<double>(bits.size());
  EXPECT_NEAR(sum / n, 32767.5, 5 * 65536 / std::sqrt(12 * n));
  // Sixteen bits cannot all differ; runs of four can.
  std::vector<uint64_t> runs;
  for (size_t i = 0; i + 4 <= bits.size(); i += 4) {
    runs.push_back(uint64_t{bits[i]} << 48 | uint64_t{bits[i + 1]} << 32 | bits[i + 2] << 16 |
                   bits[i + 3]);
  }
  std::sort(runs.begin(), runs.end());
  EXPECT_EQ(std::adjacent_find(runs.begin(), runs.end()), runs.end());
}

class CompactAdamWTest : public ::testing::Test {
 protected:
  void Update(const AdamWArgs& args) { backend_.AdamW(args, *stream_); }

  const float one_ = 1;
  const ConstTensorView scale_ = ConstTensorView(&one_, DType::kF32, {1});
  CpuDevice device_;
  CpuBackend backend_{device_};
  std::unique_ptr<Stream> stream_ = device_.NewStream();
};

// Updates of 1e-5 are a 400th of the weights' spacing in BF16: nearest rounding would leave all of
// them at 1 for ever.
TEST_F(CompactAdamWTest, SmallUpdatesMoveWeightsOnAverage) {
  constexpr int64_t kCount = 20000;
  constexpr int kSteps = 100;
  std::vector<float> weights(kCount, 1.0f), grads(kCount, 0.5f);
  std::vector<BFloat16> m(kCount), v(kCount);
  for (int step = 1; step <= kSteps; ++step) {
    Update({.values = ViewOf(weights),
            .grads = ViewOf(grads),
            .m = ViewOf(m),
            .v = ViewOf(v),
            .scale = scale_,
            .lr = 1e-5,
            .beta2 = 0.999,
            .step = step,
            .rounding = {{.key = {.seed = 1, .stream = RngStream("test", "w", step)}}}});
  }
  double sum = 0;
  for (const float w : weights) {
    EXPECT_EQ(w, static_cast<float>(BFloat16(w)));
    sum += 1 - static_cast<double>(w);
  }
  // Each of the 100 updates is 1e-5; the spacing below 1 is 2^-8.
  const double expected = kSteps * 1e-5, spacing = 1.0 / 256;
  EXPECT_NEAR(sum / kCount, expected, 5 * std::sqrt(expected * spacing / kCount));
  // The second moment after n updates with a constant gradient: g^2 (1 - b2^n).
  double mean_v = 0;
  for (const BFloat16 x : v) mean_v += static_cast<double>(static_cast<float>(x)) / kCount;
  EXPECT_NEAR(mean_v, 0.25 * (1 - std::pow(0.999, kSteps)), 1e-4);
}

// A second moment of large old gradients decays by 0.1 % an update, which nearest rounding to BF16
// would undo each time.
TEST_F(CompactAdamWTest, SecondMomentsDecay) {
  constexpr int64_t kCount = 20000;
  std::vector<float> weights(kCount, 1.0f), grads(kCount, 0.0f);
  std::vector<BFloat16> m(kCount), v(kCount, BFloat16(1.0f));
  for (int step = 1; step <= 500; ++step) {
    Update({.values = ViewOf(weights),
            .grads = ViewOf(grads),
            .m = ViewOf(m),
            .v = ViewOf(v),
            .scale = scale_,
            .lr = 0,
            .beta2 = 0.999,
            .step = step,
            .rounding = {{.key = {.seed = 1, .stream = RngStream("test", "v", step)}}}});
  }
  double mean = 0;
  for (const BFloat16 x : v) mean += static_cast<double>(static_cast<float>(x)) / kCount;
  EXPECT_NEAR(mean, std::pow(0.999, 500), 2e-3);
}

// Shards begin at multiples of 256: what each of them rounds and quantises is what the whole does.
TEST_F(CompactAdamWTest, PiecesAreTheWhole) {
  constexpr int64_t kCount = 3000;
  for (const bool eight_bit : {false, true}) {
    std::vector<float> start = Normal(kCount, 1, 0.02), grads = Normal(kCount, 2, 1e-3);
    std::vector<float> born(kCount);
    for (int64_t i = 0; i < kCount; ++i) born[i] = static_cast<float>(i % 5 == 0 ? i % 3 : 0);
    for (float& w : start) w = static_cast<float>(BFloat16(w));
    std::vector<std::vector<float>> results;
    for (const int64_t piece : {kCount, int64_t{256}, int64_t{1024}}) {
      std::vector<float> weights = start;
      std::vector<BFloat16> m(kCount), v(kCount);
      Quantized m8(kCount), v8(kCount);
      for (int step = 4; step < 7; ++step) {
        for (int64_t begin = 0; begin < kCount; begin += piece) {
          const int64_t n = std::min(piece, kCount - begin);
          const auto cut = [&](auto& array) { return ViewOf(array).Range(begin, n); };
          const auto cut_scales = [&](auto& array) {
            return ViewOf(array).Range(begin / 256, (n + 255) / 256);
          };
          AdamWArgs args;
          args.values = cut(weights);
          args.grads = cut(grads);
          args.scale = scale_;
          args.lr = 1e-3;
          args.step = step;
          args.m = eight_bit ? cut(m8.codes) : cut(m);
          args.v = eight_bit ? cut(v8.codes) : cut(v);
          if (eight_bit) args.m_scale = cut_scales(m8.scales);
          if (eight_bit) args.v_scale = cut_scales(v8.scales);
          args.born = cut(born);
          args.growth_ramp = 10;
          args.rounding = {
              {.key = {.seed = 1, .stream = RngStream("test", "", step), .first = begin}}};
          Update(args);
        }
      }
      results.push_back(weights);
    }
    EXPECT_EQ(results[0], results[1]);
    EXPECT_EQ(results[0], results[2]);
    EXPECT_NE(results[0], start);
  }
}

// Arrays one after the other in one call, with padding between them, become what a call each makes
// of them, and padding stays zero.
TEST_F(CompactAdamWTest, ManyArraysInOneCall) {
  constexpr int64_t kBegins[] = {0, 512, 768, 2048}, kCounts[] = {300, 256, 1100, 57};
  constexpr int64_t kCount = 2048 + 57;
  std::vector<float> weights(kCount), grads(kCount);
  for (int k = 0; k < 4; ++k) {
    const std::vector<float> w = Normal(kCounts[k], 1 + k, 0.02), g = Normal(kCounts[k], 9, 1e-3);
    for (int64_t i = 0; i < kCounts[k]; ++i) {
      weights[kBegins[k] + i] = static_cast<float>(BFloat16(w[i]));
      grads[kBegins[k] + i] = g[i];
    }
  }
  const auto key = [](int k) {
    return RoundingKey{.seed = 1, .stream = RngStream("test", "", k), .first = 256 * k};
  };
  std::vector<float> results[2] = {weights, weights};
  std::vector<BFloat16> m[2], v[2];
  for (int apart = 0; apart < 2; ++apart) {
    m[apart].resize(kCount), v[apart].resize(kCount);
    AdamWArgs whole = {.values = ViewOf(results[apart]),
                       .grads = ViewOf(grads),
                       .m = ViewOf(m[apart]),
                       .v = ViewOf(v[apart]),
                       .scale = scale_,
                       .lr = 1e-3,
                       .weight_decay = 0.1,
                       .step = 3};
    for (int k = 0; k < 4; ++k) {
      if (!apart) {
        whole.rounding.push_back({kBegins[k], key(k)});
        continue;
      }
      AdamWArgs one = whole;
      const auto cut = [&](auto view) { return view.Range(kBegins[k], kCounts[k]); };
      one.values = cut(whole.values), one.grads = cut(whole.grads);
      one.m = cut(whole.m), one.v = cut(whole.v);
      one.rounding = {{.key = key(k)}};
      Update(one);
    }
    if (!apart) Update(whole);
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_NE(results[0], weights);
  for (int64_t i = 0; i < kCount; ++i) {
    EXPECT_EQ(m[0][i].bits, m[1][i].bits);
    EXPECT_EQ(v[0][i].bits, v[1][i].bits);
  }
}

// tests/parity/adam8bit_reference.py: an implementation in NumPy from the paper's equations.
class EightBitParityTest : public CompactAdamWTest {
 protected:
  template <typename T>
  std::vector<T> Read(const std::string& name) const {
    const TensorEntry* entry = fixture_.Find(name);
    CHECK(entry != nullptr) << name;
    return ReadElements<T>(*entry).value();
  }

  SafetensorsFile fixture_ =
      SafetensorsFile::Open(FILIGREE_SOURCE_DIR "/tests/parity/golden/adam8bit.safetensors")
          .value();
};

TEST_F(EightBitParityTest, CodesOfGivenNumbers) {
  for (const auto& [name, map] : {std::pair("signed", QuantizationMap::kSigned),
                                  std::pair("unsigned", QuantizationMap::kUnsigned)}) {
    const Quantized found(map, Read<float>(std::string(name) + ".values"));
    const auto codes = Read<int32_t>(std::string(name) + ".codes");
    EXPECT_TRUE(std::equal(codes.begin(), codes.end(), found.codes.begin(), found.codes.end()));
    EXPECT_EQ(Read<float>(std::string(name) + ".scales"), found.scales);
  }
}

TEST_F(EightBitParityTest, FiftyUpdates) {
  std::vector<float> weights = Read<float>("weights");
  const std::vector<float> grads = Read<float>("grads");
  const auto expected = Read<float>("weights_after");
  const auto n = static_cast<int64_t>(weights.size());
  const int64_t steps = static_cast<int64_t>(grads.size()) / n;
  Quantized m(n), v(n);
  std::vector<float> values(n);
  for (int64_t step = 0; step < steps; ++step) {
    Update({.values = ViewOf(values),
            .master = ViewOf(weights),
            .grads = ConstTensorView(grads.data() + step * n, DType::kF32, {n}),
            .m = ViewOf(m.codes),
            .v = ViewOf(v.codes),
            .m_scale = ViewOf(m.scales),
            .v_scale = ViewOf(v.scales),
            .scale = scale_,
            .lr = 1e-3,
            .beta2 = 0.999,
            .weight_decay = 0.1,
            .step = step + 1});
  }
  EXPECT_EQ(steps, 50);
  // Single against double precision: where a moment lies between two entries the codes may differ
  // for a step, which moves a weight by a fraction of an update.
  double squares = 0, moved = 0;
  int64_t far = 0;
  const std::vector<float> start = Read<float>("weights");
  for (int64_t i = 0; i < n; ++i) {
    const double error = weights[i] - expected[i], move = expected[i] - start[i];
    squares += error * error;
    moved += move * move;
    far += std::fabs(error) > 1e-6;
  }
  EXPECT_LT(std::sqrt(squares / moved), 2e-4);
  EXPECT_LT(static_cast<double>(far) / static_cast<double>(n), 0.02);
}

}  // namespace
}  // namespace filigree

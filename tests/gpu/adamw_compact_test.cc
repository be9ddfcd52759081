// AdamW on state in fewer bytes against the CPU's, in fp32 like the GPU's. Random bits are the same
// on both sides, so results are equal bit for bit but where fp32 rounds differently just at a
// border: few elements may differ, and those by one step of the form they are held in.
#include <cmath>
#include <limits>

#include "kernels/base/rng.h"
#include "tests/gpu/gpu_testing.h"

namespace filigree {
namespace {

// An array on both sides, byte for byte.
template <typename T>
struct Twin {
  explicit Twin(std::vector<T> values) : host(std::move(values)) {}

  void Upload(Device& device, Stream& stream) {
    buffer = device.Allocate(host.size() * sizeof(T), "test");
    device.CopyAsync(gpu(), cpu(), stream);
    stream.Synchronize();
  }
  std::vector<T> Download(Device& device, Stream& stream) const {
    std::vector<T> values(host.size());
    device.CopyAsync(TensorView(values.data(), DTypeOf<T>::value, {size()}), gpu(), stream);
    stream.Synchronize();
    return values;
  }
  int64_t size() const { return static_cast<int64_t>(host.size()); }
  TensorView cpu() { return TensorView(host.data(), DTypeOf<T>::value, {size()}); }
  TensorView gpu() const { return buffer.View(DTypeOf<T>::value, size()); }

  std::vector<T> host;
  DeviceBuffer buffer;
};

std::vector<float> Normal(int64_t count, uint64_t seed, double scale) {
  std::vector<float> values(count);
  for (int64_t i = 0; i < count; ++i) {
    values[i] = static_cast<float>(scale * RandomNormal(seed, RngStream("test"), i));
  }
  return values;
}

std::vector<BFloat16> Halves(const std::vector<float>& values) {
  std::vector<BFloat16> halves(values.size());
  for (size_t i = 0; i < values.size(); ++i) halves[i] = BFloat16(values[i]);
  return halves;
}

std::vector<float> Floats(const std::vector<BFloat16>& halves) {
  std::vector<float> values(halves.size());
  for (size_t i = 0; i < halves.size(); ++i) values[i] = static_cast<float>(halves[i]);
  return values;
}

class GpuCompactAdamWTest : public GpuTest {
 protected:
  struct Form {
    bool master, eight_bit;
    DType grads;
    int64_t growth_ramp;  // 0: without ages
  };

  // State before an update: moments as after some, from step 7 on.
  struct State {
    explicit State(int64_t n)
        : weights(Floats(Halves(Normal(n, 1, 0.02)))),
          halves(Halves(weights.host)),
          master(Normal(n, 2, 0.02)),
          grads(Floats(Halves(Normal(n, 3, 1e-3)))),
          half_grads(Halves(grads.host)),
          m(Halves(Normal(n, 4, 1e-3))),
          v(Halves(Squares(n))),
          m_codes(std::vector<uint8_t>(n)),
          v_codes(std::vector<uint8_t>(n)),
          m_scales(std::vector<float>((n + 255) / 256)),
          v_scales(std::vector<float>((n + 255) / 256)),
          born(std::vector<float>(n)) {
      const std::vector<float> first = Normal(n, 4, 1e-3), second = Squares(n);
      QuantizeBlocks(QuantizationMap::kSigned, first.data(), n, m_codes.host.data(),
                     m_scales.host.data());
      QuantizeBlocks(QuantizationMap::kUnsigned, second.data(), n, v_codes.host.data(),
                     v_scales.host.data());
      for (int64_t i = 0; i < n; i += 3) born.host[i] = static_cast<float>(i % 7);
      const auto upload = [&](auto&... twins) { (twins.Upload(device(), stream()), ...); };
      upload(halves, master, grads, half_grads, m, v, m_codes, v_codes, m_scales, v_scales, born);
    }
    static std::vector<float> Squares(int64_t n) {
      std::vector<float> squares = Normal(n, 5, 1e-3);
      for (float& x : squares) x *= x;
      return squares;
    }

    Twin<float> weights;    // the CPU's values
    Twin<BFloat16> halves;  // the GPU's
    Twin<float> master, grads;
    Twin<BFloat16> half_grads, m, v;
    Twin<uint8_t> m_codes, v_codes;
    Twin<float> m_scales, v_scales, born;
  };

  static void Update(State& s, const Form& form, float scale = 0.37f) {
    const DeviceBuffer scalar = device().Allocate(sizeof(float), "test");
    device().CopyAsync(scalar.View(DType::kF32, 1), ConstTensorView(&scale, DType::kF32, {1}),
                       stream());
    for (const bool on_gpu : {true, false}) {
      const auto side = [&](auto& twin) { return on_gpu ? twin.gpu() : twin.cpu(); };
      AdamWArgs args;
      args.values = on_gpu ? s.halves.gpu() : s.weights.cpu();
      if (form.master) args.master = side(s.master);
      args.grads = on_gpu && form.grads == DType::kBF16 ? s.half_grads.gpu() : side(s.grads);
      args.m = form.eight_bit ? side(s.m_codes) : side(s.m);
      args.v = form.eight_bit ? side(s.v_codes) : side(s.v);
      if (form.eight_bit) args.m_scale = side(s.m_scales);
      if (form.eight_bit) args.v_scale = side(s.v_scales);
      args.scale = on_gpu ? scalar.View(DType::kF32, 1) : TensorView(&scale, DType::kF32, {1});
      args.lr = 3e-3;
      args.weight_decay = 0.1;
      args.step = 7;
      args.growth_ramp = form.growth_ramp;
      if (form.growth_ramp > 0) args.born = side(s.born);
      args.rounding = {{.key = {.seed = 11, .stream = RngStream("test"), .first = 512}}};
      // Many arrays in one, for 100,003 elements more than a launch takes.
      for (int64_t begin = 768; begin < s.m.size() && !form.eight_bit; begin += 768) {
        args.rounding.push_back(
            {begin, {.seed = 11, .stream = RngStream("test", "", begin), .first = 8 * begin}});
      }
      on_gpu ? gpu().AdamW(args, stream()) : cpu().AdamW(args, cpu_stream());
    }
    stream().Synchronize();
  }

  // At most one in fifty elements (or one) is not equal, by at most `steps` in its integer form.
  template <typename T, typename Integer>
  static void ExpectNear(const Twin<T>& twin, const std::vector<T>& expected, int steps,
                         const char* what, const Integer& integer) {
    const std::vector<T> found = twin.Download(device(), stream());
    int64_t different = 0;
    for (size_t i = 0; i < found.size(); ++i) {
      const int64_t distance = std::abs(int64_t{integer(found[i])} - integer(expected[i]));
      EXPECT_LE(distance, steps) << what << " " << i;
      different += distance != 0;
    }
    EXPECT_LE(different, 1 + static_cast<int64_t>(found.size()) / 50) << what;
  }

  static void ExpectClose(const Twin<float>& twin, const std::vector<float>& expected,
                          const char* what) {
    const std::vector<float> found = twin.Download(device(), stream());
    for (size_t i = 0; i < found.size(); ++i) {
      EXPECT_NEAR(found[i], expected[i], 1e-6 * std::fabs(expected[i]) + 1e-8) << what << " " << i;
    }
  }
};

TEST_F(GpuCompactAdamWTest, FollowsTheReference) {
  const auto bits = [](BFloat16 x) { return static_cast<int>(x.bits); };
  const auto code = [](uint8_t x) { return static_cast<int>(x); };
  for (const bool eight_bit : {false, true}) {
    for (const bool master : {false, true}) {
      if (master && !eight_bit) continue;
      for (const DType grads : {DType::kF32, DType::kBF16}) {
        for (const int64_t growth_ramp : {0, 4}) {
          for (const int64_t n : {1, 7, 8, 255, 256, 2049, 100003}) {
            SCOPED_TRACE(testing::Message() << "8-bit " << eight_bit << ", master " << master
                                            << ", ramp " << growth_ramp << ", n " << n);
            State state(n);
            Update(state, {master, eight_bit, grads, growth_ramp});
            ExpectNear(state.halves, Halves(state.weights.host), 1, "values", bits);
            if (master) ExpectClose(state.master, state.master.host, "master");
            if (eight_bit) {
              ExpectClose(state.m_scales, state.m_scales.host, "m_scale");
              ExpectClose(state.v_scales, state.v_scales.host, "v_scale");
              ExpectNear(state.m_codes, state.m_codes.host, 1, "m", code);
              ExpectNear(state.v_codes, state.v_codes.host, 1, "v", code);
            } else {
              ExpectNear(state.m, state.m.host, 1, "m", bits);
              ExpectNear(state.v, state.v.host, 1, "v", bits);
            }
          }
        }
      }
    }
  }
}

TEST_F(GpuCompactAdamWTest, WithoutAFiniteScaleWritesNothing) {
  for (const bool eight_bit : {false, true}) {
    State state(777);
    Update(state, {false, eight_bit, DType::kF32, 0}, std::numeric_limits<float>::quiet_NaN());
    EXPECT_EQ(Floats(state.halves.Download(device(), stream())), Floats(state.halves.host));
    EXPECT_EQ(state.m_codes.Download(device(), stream()), state.m_codes.host);
    EXPECT_EQ(Floats(state.v.Download(device(), stream())), Floats(state.v.host));
  }
}

}  // namespace
}  // namespace filigree

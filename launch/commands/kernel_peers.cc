#include "launch/commands/kernel_peers.h"

#ifdef FILIGREE_HAS_CUDA
#include <algorithm>
#include <functional>
#include <memory>

#include "kernels/base/rng.h"
#include "kernels/cuda/cusparse_weight.h"
#endif

namespace filigree {

#ifdef FILIGREE_HAS_CUDA
namespace {

constexpr int kRounds = 3;

std::vector<BFloat16> NormalValues(int64_t count, double scale) {
  constexpr int64_t kPeriod = 1048573;  // a prime, as kernel_timing.cc has it
  std::vector<BFloat16> drawn, values;
  for (int64_t i = 0; i < std::min(count, kPeriod); ++i) {
    drawn.emplace_back(static_cast<float>(scale * RandomNormal(0, RngStream("bench kernels"), i)));
  }
  for (int64_t i = 0; i < count; ++i) values.push_back(drawn[i % kPeriod]);
  return values;
}

// On the device, as the whole of a buffer.
DeviceBuffer NormalMatrix(int64_t count, Device& device, Stream& stream) {
  const std::vector<BFloat16> values = NormalValues(count, 1);
  DeviceBuffer buffer = device.Allocate(count * sizeof(BFloat16), "scratch");
  device.CopyAsync(buffer.View(DType::kBF16, count),
                   ConstTensorView(values.data(), DType::kBF16, {count}), stream);
  stream.Synchronize();
  return buffer;
}

// A transposable 2:4 weight: squares of four cells, every other one along rows and columns.
DeviceBuffer TwoFourMatrix(const KernelCase& c, Device& device, Stream& stream) {
  std::vector<BFloat16> values = NormalValues(c.out * c.in, 0.02);
  for (int64_t i = 0; i < c.out * c.in; ++i) {
    if ((i / c.in / 2 + i % c.in / 2) % 2 != 0) values[i] = BFloat16(0.0f);
  }
  DeviceBuffer buffer = device.Allocate(values.size() * sizeof(BFloat16), "scratch");
  device.CopyAsync(buffer.View(DType::kBF16, c.out * c.in),
                   ConstTensorView(values.data(), DType::kBF16, {c.out * c.in}), stream);
  stream.Synchronize();
  return buffer;
}

// A median after a round of warming up; nothing where `product` says that there is none.
std::optional<double> MedianMs(const std::function<bool()>& product, Device& device,
                               Stream& stream) {
  const auto begin = device.NewTimedEvent(), end = device.NewTimedEvent();
  std::vector<double> ms;
  for (int round = -1; round < kRounds; ++round) {
    begin->Record(stream);
    if (!product()) return std::nullopt;
    end->Record(stream);
    stream.Synchronize();
    if (round >= 0) ms.push_back(end->MillisecondsSince(*begin));
  }
  std::sort(ms.begin(), ms.end());
  return ms[ms.size() / 2];
}

// As `n_m` trains: on sparse tensor cores, or densely where that was faster, as the log says.
KernelPeer TimeTwoFour(const KernelCase& c, TensorView x, TensorView dy, TensorView y,
                       TensorView dx, Backend& backend, Stream& stream) {
  KernelPeer peer = {.name = "n_m_2to4", .ms = {}};
  const DeviceBuffer buffer = TwoFourMatrix(c, backend.device(), stream);
  const TensorView matrix = buffer.View(DType::kBF16, c.out * c.in).Reshape({c.out, c.in});
  const auto weight = backend.PrepareTwoFour(matrix, TwoFourKind::kRowsAndColumns);
  if (!weight) return peer;
  weight->Update(stream);
  const MatMulArgs products[] = {{.a = x, .b = matrix, .out = y, .transpose_b = true},
                                 {.a = dy, .b = matrix, .out = dx}};
  for (int i = 0; i < 2; ++i) {
    const auto run = [&] {
      weight->MatMul(products[i], stream);
      return true;
    };
    peer.ms[i] = MedianMs(run, backend.device(), stream);
  }
  return peer;
}

}  // namespace

std::vector<KernelPeer> TimePeers(const KernelCase& c, Backend& backend, Stream& stream) {
  if (backend.device().name() != "cuda") return {};
  auto& device = static_cast<CudaDevice&>(backend.device());
  const SparseLayout layout = LayoutOf(c);
  if (layout.block_count() == 0 || layout.stored_count() != layout.nonzero_count()) return {};
  const std::vector<BFloat16> values = NormalValues(layout.stored_count(), 0.02);
  const DeviceBuffer x = NormalMatrix(c.tokens * c.in, device, stream);
  const DeviceBuffer dy = NormalMatrix(c.tokens * c.out, device, stream);
  const DeviceBuffer out =
      device.Allocate(c.tokens * std::max(c.in, c.out) * sizeof(BFloat16), "scratch");
  const auto view = [&](const DeviceBuffer& buffer, int64_t width) {
    return buffer.View(DType::kBF16, c.tokens * width).Reshape({c.tokens, width});
  };
  std::vector<KernelPeer> peers;
  for (const auto& [name, format] : {std::pair{"cusparse_bsr", CusparseFormat::kBsr},
                                     std::pair{"cusparse_csr", CusparseFormat::kCsr}}) {
    CusparseWeight weight(layout, values, format, device);
    KernelPeer peer = {.name = name, .ms = {}};
    const std::function<bool()> products[] = {
        [&] { return weight.Forward(view(x, c.in), view(out, c.out), stream); },
        [&] { return weight.InputGrad(view(dy, c.out), view(out, c.in), stream); },
        [&] { return weight.WeightGrad(view(dy, c.out), view(x, c.in), stream); }};
    double total = 0;
    bool whole = true;
    for (int i = 0; i < 3; ++i) {
      peer.ms[i] = MedianMs(products[i], device, stream);
      whole = whole && peer.ms[i].has_value();
      total += peer.ms[i].value_or(0);
    }
    if (whole) peer.ms[3] = total;
    peers.push_back(std::move(peer));
  }
  peers.push_back(TimeTwoFour(c, view(x, c.in), view(dy, c.out), view(out, c.out), view(out, c.in),
                              backend, stream));
  return peers;
}
#else
std::vector<KernelPeer> TimePeers(const KernelCase&, Backend&, Stream&) { return {}; }
#endif

}  // namespace filigree

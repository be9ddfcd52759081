#include "launch/commands/kernel_roof.h"

namespace filigree {
namespace {

// Bytes into shared memory for each operation, or 0 where the tile is none of the Hopper kernels'.
double SharedBytesPerFlop(int features) {
  if (features != 64 && features != 128) return 0;
  const double tokens = features == 128 ? 256 : 512;
  return (features + tokens) * 128 / (2.0 * 64 * features * tokens);
}

}  // namespace

KernelRoof RoofOf(int product, const KernelCase& c, const KernelTimes& times,
                  const DeviceRates& rates) {
  constexpr int kInputGrad = 1, kWeightGrad = 2, kTotal = 3;
  if (product == kTotal) {
    KernelRoof total, longest;
    for (int part = 0; part < kTotal; ++part) {
      const KernelRoof roof = RoofOf(part, c, times, rates);
      total.ms += roof.ms;
      if (roof.ms > longest.ms) longest = roof;
    }
    return {total.ms, longest.bound};
  }
  const auto stored = static_cast<double>(times.stored);
  const double dense = static_cast<double>(c.out) * static_cast<double>(c.in);
  KernelRoof roof = {times.dense[product] * stored / dense, "compute"};
  const auto consider = [&](double ms, const char* bound) {
    if (ms > roof.ms) roof = {ms, bound};
  };
  if (rates.l2_to_shared > 0) {
    const int features = product == kInputGrad ? c.block_in : c.block_out;
    const double bytes = times.ProductFlops(c.tokens) * SharedBytesPerFlop(features);
    consider(bytes / rates.l2_to_shared * 1e3, "l2");
  }
  const double activations = 2.0 * static_cast<double>(c.tokens * (c.in + c.out));
  consider((activations + stored * (product == kWeightGrad ? 4 : 2)) / rates.memory * 1e3,
           "memory");
  return roof;
}

}  // namespace filigree

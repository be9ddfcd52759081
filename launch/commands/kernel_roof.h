// The least time that a blocked product can take, and what bounds it (kernels/README.md, "The law they
// obey").
#pragma once

#include "launch/commands/kernel_timing.h"

namespace filigree {

// Bytes a second, as measured on this device.
struct DeviceRates {
  double memory = 0;
  double l2_to_shared = 0;  // 0: not known, and not counted
};

struct KernelRoof {
  double ms = 0;
  const char* bound = "";
};

// Of one of kProductNames. Three times run at once, the longest counts:
// - compute: the operations of the stored blocks at the rate of the dense product beside it, which is
//   what the device sustains on this shape;
// - l2: the operand slices that the Hopper kernels bring into shared memory: a tile of f features
//   (64 or 128: the block's side) by t tokens (512 or 256) takes (f + t) * 128 bytes for a step of
//   2 * 64 * f * t operations;
// - memory: inputs, outputs and stored values once each.
// The total's roof is the sum of its products', its bound that of the longest.
KernelRoof RoofOf(int product, const KernelCase& c, const KernelTimes& times,
                  const DeviceRates& rates);

}  // namespace filigree

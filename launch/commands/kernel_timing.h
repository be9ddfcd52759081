// Times a blocked weight's three products against dense ones, on any backend.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/backend.h"

namespace filigree {

struct KernelCase {
  int64_t out = 0, in = 0;  // the weight
  int block_out = 0, block_in = 0;
  double density = 1;
  bool balanced = false;  // RandomBalancedBlocks; else RandomUniformBlocks
  int64_t tokens = 0;
  uint64_t seed = 0;
};

// The weight of a case, drawn by its seed.
SparseLayout LayoutOf(const KernelCase& c);

// Forward, input gradient, weight gradient, and all three back to back.
inline constexpr std::array<const char*, 4> kProductNames = {"forward", "input_grad", "weight_grad",
                                                             "total"};
using ProductTimes = std::array<double, 4>;  // milliseconds, medians

struct KernelTimes {
  ProductTimes ours;
  ProductTimes dense;  // the whole weight, by the backend's MatMul (cuBLASLt)
  ProductTimes equal;  // MatMul on a weight cut to as many operations as ours executes
  int64_t stored = 0;  // values of the blocked weight

  // Floating-point operations that one product executes; the total is three of them.
  double ProductFlops(int64_t tokens) const { return 2.0 * static_cast<double>(stored * tokens); }
};

// The contenders take turns `repeats` times, after some rounds of warming up, on two sets of normal
// inputs that take turns too. The gradient of our weight is overwritten, in F32 where the backend
// trains with that; the dense one is in the compute dtype, which favours the peer.
KernelTimes TimeKernels(const KernelCase& c, int repeats, Backend& backend, Stream& stream);

// Bytes a second that the device reads and writes together in adding two large arrays.
double MeasureMemoryBandwidth(Backend& backend, Stream& stream);

}  // namespace filigree

// Products with a dense weight of which at most two of every four consecutive cells are not zero
// (2:4): what sparse tensor cores read at half the traffic and twice the rate.
#pragma once

#include "kernels/base/device.h"

namespace filigree {

struct MatMulArgs;

// A weight W [out, in] that is held densely by somebody else, and whatever products with it are
// made of (Backend::PrepareTwoFour). On one stream.
class TwoFourWeight {
 public:
  virtual ~TwoFourWeight() = default;

  // After every change of W, before products with it.
  virtual void Update(Stream& stream) = 0;
  // As Backend::MatMul with W as `args.b`: y = x W^T where transpose_b is set, else dx = dy W. The
  // same result to rounding.
  virtual void MatMul(const MatMulArgs& args, Stream& stream) = 0;
};

}  // namespace filigree

// Which side of a 2:4 weight a product sums over.
#pragma once

#include <cstdint>

namespace filigree {

// A weight W [out, in], row-major and without gaps, and the side: the inputs (y = x W^T), or the
// outputs (dx = dy W).
struct TwoFourSide {
  int64_t out = 0, in = 0;
  bool transposed = false;

  int64_t depth() const { return transposed ? out : in; }
  int64_t width() const { return transposed ? in : out; }
  bool operator==(const TwoFourSide&) const = default;
};

}  // namespace filigree

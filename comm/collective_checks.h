// What collectives ask of the views that they are given.
#pragma once

#include "comm/communicator.h"
#include "kernels/base/check.h"
#include "kernels/base/dtype.h"

namespace filigree {

// Those of `reader`, which reads host memory at once and waits for nothing.
inline void CheckHostView(const TensorView& view, const Event& ready, const char* reader) {
  CHECK(ready.Done()) << reader << " host memory: the work before a collective must be complete";
  CHECK(view.contiguous());
}

// `slice` is one of the ranks' equal parts of `whole`.
inline void CheckSlices(const ConstTensorView& whole, const ConstTensorView& slice, int ranks) {
  CHECK(whole.contiguous() && slice.contiguous());
  CHECK_EQ(whole.size(), slice.size() * ranks) << "elements on " << ranks << " ranks";
  CHECK(whole.dtype() == slice.dtype())
      << NameOf(whole.dtype()) << " and " << NameOf(slice.dtype());
}

}  // namespace filigree

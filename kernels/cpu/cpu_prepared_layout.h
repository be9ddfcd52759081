// A layout as the CPU's operations read it: the host indices and their transpose.
#pragma once

#include "kernels/backend.h"

namespace filigree {

struct CpuPreparedLayout final : public PreparedLayout {
  explicit CpuPreparedLayout(SparseLayout layout);
  size_t bytes() const override;

  const SparseLayout::Transposed transposed;  // of blocked layouts; others are never multiplied
};

}  // namespace filigree

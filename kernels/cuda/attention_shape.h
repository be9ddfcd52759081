// The shape of one attention call on CUDA, checked.
//
// CUDA keeps the log-sum-exp of a call as [B, H, S] in the memory of its `lse` view, which must
// therefore be contiguous: cuDNN's backward pass reads no other order, and so a forward pass by one
// implementation may be followed by a backward pass of the other.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/backend.h"

namespace filigree {

struct AttentionShape {
  int64_t sequences, seq_len, heads, kv_heads, head_size;

  int64_t tokens() const { return sequences * seq_len; }
  // 1 / sqrt(E), what scores are multiplied by.
  float scale() const;
  // "8x1024, 12/4 heads of 64"
  std::string Name() const;
};

// Both CHECK that every view has the shape and dtype that backend.h asks for.
AttentionShape ShapeOf(const AttentionArgs& args);
AttentionShape ShapeOf(const AttentionBackwardArgs& args);

}  // namespace filigree

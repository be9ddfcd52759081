// cuDNN's fused attention: one graph a shape, built at its first call.
//
// q, k, v and their gradients are read and written where they lie, as column slices of wider
// matrices. Scores and sums are F32; probabilities enter the tensor cores as BF16. A first call of
// a shape costs the host some tenths of a second and must come before its stream is captured.
//
// Built from attention_cudnn.cc where cuDNN and its C++ front end were found, else from
// attention_without_cudnn.cc, which declines every call.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>
#include <memory>

#include "kernels/backend.h"
#include "kernels/cuda/attention_shape.h"

namespace filigree {

class AttentionPlans {
 public:
  // Gives device memory of at least so many bytes, which is the operation's until its stream has
  // run it.
  using Workspace = std::function<std::byte*(size_t bytes)>;

  // Whether this build has cuDNN.
  static bool Available();

  AttentionPlans();
  ~AttentionPlans();

  // Each submits the operation and returns true, or returns false and has done nothing: no cuDNN, a
  // shape that it does not support, views whose rows or data do not begin at multiples of 16 bytes,
  // or a sequence length that is no multiple of 64. (Generation lengthens its sequence token by
  // token, and would build a graph for each.)
  bool Forward(const AttentionArgs& args, const AttentionShape& shape, const Workspace& workspace,
               cudaStream_t stream);
  // `deterministic`: the same bits at every call, which costs time and a workspace of 2 B H S^2
  // bytes on Hopper.
  bool Backward(const AttentionBackwardArgs& args, const AttentionShape& shape, bool deterministic,
                const Workspace& workspace, cudaStream_t stream);

 private:
  struct Graphs;
  std::unique_ptr<Graphs> graphs_;
};

}  // namespace filigree

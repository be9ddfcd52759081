// A blocked product with a LowRankTerm as primitives: the blocked product, then one dense product a
// factor that adds to its result. What every backend does where it has no kernel that sums both at
// once, and what such kernels are tested against.
#pragma once

#include "kernels/backend.h"
#include "kernels/gelu_epilogue.h"
#include "kernels/swiglu_epilogue.h"

namespace filigree {

// args.low_rank has factors.
inline void SpmmThenFactors(Backend& backend, const SpmmArgs& args, Stream& stream) {
  const TensorView sum = args.epilogue.ResultIn(args.y);
  SpmmArgs blocked = args;
  blocked.low_rank = {};
  blocked.y = sum;
  blocked.epilogue = {.residual = args.epilogue.residual};
  backend.Spmm(blocked, stream);
  int64_t inner_begin = 0, out_begin = 0;
  for (const ConstTensorView& b : args.low_rank.factors) {
    backend.MatMul({.a = args.low_rank.inner.Cols(inner_begin, b.cols()),
                    .b = b,
                    .out = sum.Cols(out_begin, b.rows()),
                    .transpose_b = true,
                    .accumulate = true},
                   stream);
    inner_begin += b.cols();
    out_begin += b.rows();
  }
  ApplyGelu(backend, args.y, args.epilogue, stream);
  ApplySwiGluBackward(backend, args.y, args.epilogue, stream);
  ApplySwiGlu(backend, args.y, args.epilogue, stream);
  if (!args.epilogue.column_sums.empty()) {
    backend.ColumnSum({.in = args.y,
                       .out = args.epilogue.column_sums,
                       .accumulate = args.epilogue.accumulate_sums},
                      stream);
  }
}

// args.low_rank has factors. The last product takes the epilogue along.
inline void SpmmTransposedThenFactors(Backend& backend, const SpmmTransposedArgs& args,
                                      Stream& stream) {
  SpmmTransposedArgs blocked = args;
  blocked.low_rank = {};
  blocked.epilogue = {};
  backend.SpmmTransposed(blocked, stream);
  int64_t inner_begin = 0;
  for (const ConstTensorView& a : args.low_rank.factors) {
    const bool last = &a == &args.low_rank.factors.back();
    backend.MatMul({.a = args.low_rank.inner.Cols(inner_begin, a.rows()),
                    .b = a,
                    .out = args.dx,
                    .accumulate = true,
                    .epilogue = last ? args.epilogue : ProductEpilogue{}},
                   stream);
    inner_begin += a.rows();
  }
}

}  // namespace filigree

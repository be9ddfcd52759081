// Weights that share their input, joined to one: one launch that reads the input once, where the
// Hopper kernels take it, else part by part.
#include <optional>
#include <utility>
#include <vector>

#include "kernels/cuda/sparse_variants.h"
#include "kernels/planned/joined_layout.h"
#include "kernels/swiglu_epilogue.h"

namespace filigree {
namespace {

// The columns of a part in a view of the joined output, or nothing of nothing.
template <typename View>
View ColumnsOf(View view, const CudaPreparedLayout::Part& part) {
  if (view.empty()) return view;
  return view.Cols(part.out_begin, part.weight->layout().out());
}

template <typename View>
View ValuesOf(View values, const CudaPreparedLayout::Part& part) {
  return values.Range(part.value_begin, part.weight->layout().stored_count());
}

TensorView SumsOf(TensorView sums, const CudaPreparedLayout::Part& part) {
  return sums.empty() ? sums : sums.Range(part.out_begin, part.weight->layout().out());
}

}  // namespace

std::unique_ptr<PreparedLayout> CudaBackend::PrepareGroup(
    std::span<const PreparedLayout* const> parts, std::span<const int64_t> value_begin) {
  std::optional<SparseLayout> joined = JoinLayouts(parts, value_begin);
  if (!joined || !HopperServes(*joined, device_.card())) return nullptr;
  std::vector<CudaPreparedLayout::Part> members;
  int64_t out_begin = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    members.push_back({&Prepared(parts[i]), out_begin, value_begin[i]});
    out_begin += parts[i]->layout().out();
  }
  return std::make_unique<CudaPreparedLayout>(*std::move(joined), std::move(members), device_);
}

bool CanMultiplyParts(const BlockProduct& product) { return !product.weight->parts().empty(); }

void MultiplyParts(CudaBackend& backend, const BlockProduct& product, Stream& stream) {
  const std::vector<CudaPreparedLayout::Part>& parts = product.weight->parts();
  const SwiGluGradient& swiglu = product.epilogue.swiglu;
  for (const CudaPreparedLayout::Part& part : parts) {
    const bool is_first = &part == &parts.front(), is_last = &part == &parts.back();
    const ConstTensorView values = ValuesOf(product.values, part);
    if (product.transposed) {  // the sum over the parts; the epilogue is the whole sum's
      backend.SpmmTransposed({.weight = part.weight,
                              .values = values,
                              .dy = ColumnsOf(product.in, part),
                              .dx = product.out,
                              .accumulate = product.accumulate || !is_first,
                              .epilogue = is_last ? product.epilogue : ProductEpilogue{}},
                             stream);
      continue;
    }
    const ConstTensorView bias =
        product.bias.empty() ? product.bias
                             : product.bias.Range(part.out_begin, part.weight->layout().out());
    backend.Spmm({.weight = part.weight,
                  .values = values,
                  .x = product.in,
                  .y = ColumnsOf(product.out, part),
                  .bias = bias,
                  .epilogue = {.residual = ColumnsOf(product.epilogue.residual, part),
                               .pre_activation = ColumnsOf(product.epilogue.pre_activation, part),
                               .gelu_input = ColumnsOf(product.epilogue.gelu_input, part),
                               .swiglu = {ColumnsOf(swiglu.gate, part), ColumnsOf(swiglu.up, part),
                                          ColumnsOf(swiglu.dup, part), swiglu.linear},
                               .column_sums = SumsOf(product.epilogue.column_sums, part),
                               .accumulate_sums = product.epilogue.accumulate_sums}},
                 stream);
  }
  ApplySwiGlu(backend, product.out, product.epilogue, stream);
}

bool CanSampleParts(const SddmmArgs& args) { return !Prepared(args.weight).parts().empty(); }

void SampleParts(CudaBackend& backend, const SddmmArgs& args, Stream& stream) {
  for (const CudaPreparedLayout::Part& part : Prepared(args.weight).parts()) {
    backend.Sddmm({.weight = part.weight,
                   .dy = ColumnsOf(args.dy, part),
                   .x = args.x,
                   .dvalues = ValuesOf(args.dvalues, part),
                   .accumulate = args.accumulate},
                  stream);
  }
}

}  // namespace filigree

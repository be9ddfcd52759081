// A batch of products one by one.
#pragma once

#include <cstddef>
#include <type_traits>

#include "kernels/backend.h"

namespace filigree {

// Calls fn with the arguments of each product of the batch.
template <typename Fn>
void ForEachProduct(const MatMulArgs& args, const Fn& fn) {
  const auto shifted = [](const auto& view, int64_t elements) {
    using View = std::remove_cvref_t<decltype(view)>;
    const auto bytes = elements * static_cast<int64_t>(SizeOf(view.dtype()));
    using Byte = std::conditional_t<std::is_same_v<View, TensorView>, std::byte, const std::byte>;
    return View::Matrix(static_cast<Byte*>(view.data()) + bytes, view.dtype(), view.rows(),
                        view.cols(), view.row_stride());
  };
  CHECK(args.bias.empty()) << "a batch has no bias";
  for (int64_t i = 0; i < args.batch.count; ++i) {
    MatMulArgs one = args;
    one.batch = {};
    one.a = shifted(args.a, i * args.batch.a);
    one.b = shifted(args.b, i * args.batch.b);
    one.out = shifted(args.out, i * args.batch.out);
    fn(one);
  }
}

}  // namespace filigree

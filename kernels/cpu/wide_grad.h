// BF16 gradients on a backend that computes in F32.
//
// An operation adds into a wide stand-in that is zero at first, and what it added is then added to
// the gradient, rounded once: what a GPU's kernel does with its accumulators.
#pragma once

#include <algorithm>

#include "kernels/base/check.h"
#include "kernels/base/tensor_view.h"
#include "kernels/cpu/parallel.h"

namespace filigree {

// Lives as long as the operation runs. A gradient that is not BF16 is its own stand-in.
class WideGrad {
 public:
  // `adds`: the operation adds to `grad`; else it overwrites it.
  explicit WideGrad(TensorView grad, ScratchSlot slot = ScratchSlot::kWideGrad, bool adds = true)
      : grad_(grad), wide_(grad), adds_(adds) {
    if (grad.dtype() != DType::kBF16 || grad.empty()) return;
    float* data = Scratch<float>(slot, grad.size());
    std::fill_n(data, grad.size(), 0.0f);
    wide_ = TensorView(data, DType::kF32, {grad.rows(), grad.cols()});
  }
  ~WideGrad() {
    if (wide_.data() == grad_.data()) return;
    const int64_t cols = grad_.cols();
    ParallelFor(grad_.rows(), RowGrain(cols), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) AddRow(i, cols);
    });
  }
  WideGrad(const WideGrad&) = delete;
  WideGrad& operator=(const WideGrad&) = delete;

  TensorView view() const { return wide_; }

 private:
  void AddRow(int64_t row, int64_t cols) const {
    BFloat16* to = grad_.As<BFloat16>() + row * grad_.row_stride();
    const float* from = wide_.As<float>() + row * cols;
    for (int64_t j = 0; j < cols; ++j) {
      to[j] = BFloat16((adds_ ? static_cast<float>(to[j]) : 0.0f) + from[j]);
    }
  }

  const TensorView grad_;
  TensorView wide_;
  const bool adds_;
};

// `in`, or an F32 copy in scratch where it is BF16.
inline ConstTensorView Widened(ConstTensorView in) {
  if (in.dtype() != DType::kBF16) return in;
  CHECK(in.contiguous());
  float* wide = Scratch<float>(ScratchSlot::kWideGrad, in.size());
  const BFloat16* from = in.As<BFloat16>();
  ParallelFor(in.size(), RowGrain(1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) wide[i] = static_cast<float>(from[i]);
  });
  return ConstTensorView(wide, DType::kF32, {in.size()});
}

}  // namespace filigree

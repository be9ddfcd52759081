// Activation memory: one allocation, handed out from front to back.
//
// The same code that lays activations out also measures them: an arena without memory hands out
// empty views and counts their bytes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/base/device.h"
#include "kernels/base/math.h"

namespace filigree {

class ActivationArena {
 public:
  // `dtype` of activations; statistics (norms, log-sum-exp, losses) are F32, or F64 beside F64.
  explicit ActivationArena(DType dtype) : dtype_(dtype) {}

  DType dtype() const { return dtype_; }
  DType statistic_dtype() const { return dtype_ == DType::kF64 ? DType::kF64 : DType::kF32; }

  // Memory for everything that a measuring pass asked for; starts handing out anew.
  void Allocate(Device& device) {
    buffer_ = device.Allocate(used_, "activations");
    Restart();
  }
  void Restart() { used_ = 0; }
  size_t used_bytes() const { return used_; }

  // Hands out the same memory to each of `count` users, lay_out(i) taking what user i needs.
  template <typename LayOut>
  void Share(size_t count, const LayOut& lay_out) {
    const size_t begin = used_;
    size_t end = used_;
    for (size_t i = 0; i < count; ++i) {
      used_ = begin;
      lay_out(i);
      end = std::max(end, used_);
    }
    used_ = end;
  }

  TensorView Matrix(int64_t rows, int64_t cols) { return Matrix(rows, cols, dtype_); }
  TensorView Matrix(int64_t rows, int64_t cols, DType dtype) {
    return TensorView(Take(rows * cols, dtype), dtype, {rows, cols});
  }
  TensorView Statistic(int64_t rows) {
    return TensorView(Take(rows, statistic_dtype()), statistic_dtype(), {rows});
  }
  TensorView Statistic(int64_t rows, int64_t cols) {
    return TensorView(Take(rows * cols, statistic_dtype()), statistic_dtype(), {rows, cols});
  }

 private:
  static constexpr int64_t kAlignment = 256;  // bytes, as Device::Allocate aligns

  void* Take(int64_t count, DType dtype) {
    const size_t begin = used_;
    used_ += AlignUp(count * static_cast<int64_t>(SizeOf(dtype)), kAlignment);
    if (buffer_.data() == nullptr) return nullptr;
    CHECK_LE(used_, buffer_.bytes()) << "activations beyond what was reserved";
    return static_cast<std::byte*>(buffer_.data()) + begin;
  }

  DType dtype_;
  DeviceBuffer buffer_;
  size_t used_ = 0;
};

}  // namespace filigree

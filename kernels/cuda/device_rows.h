// Checked views as kernels take them: pointer and row stride; and when 16-byte accesses are legal.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <type_traits>

#include "kernels/base/check.h"
#include "kernels/base/tensor_view.h"

namespace filigree {

// The dtype of a device element type.
template <typename T>
struct DeviceDType : DTypeOf<T> {};
template <>
struct DeviceDType<__nv_bfloat16> {
  static constexpr DType value = DType::kBF16;
};

template <typename T>
struct Rows {
  T* data = nullptr;
  int64_t stride = 0;
  __host__ __device__ T* row(int64_t i) const { return data + i * stride; }
};

// The view as a [rows, cols] matrix of T; anything else is a broken invariant. `name` is the
// argument's name in kernels/backend.h.
template <typename T, typename Pointer>
auto AsRows(const BasicTensorView<Pointer>& view, int64_t rows, int64_t cols, const char* name) {
  using Element = std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const T, T>;
  CHECK(view.rows() == rows && view.cols() == cols)
      << name << " is [" << view.rows() << ", " << view.cols() << "], not [" << rows << ", " << cols
      << "]";
  CHECK(view.dtype() == DeviceDType<T>::value)
      << name << " holds " << NameOf(view.dtype()) << ", not " << NameOf(DeviceDType<T>::value);
  return Rows<Element>{static_cast<Element*>(view.data()), view.row_stride()};
}

// The view as `count` contiguous elements of T.
template <typename T, typename Pointer>
auto AsElements(const BasicTensorView<Pointer>& view, int64_t count, const char* name) {
  CHECK(view.size() == count && view.contiguous())
      << name << " has " << view.size() << " elements, not " << count << " contiguous ones";
  CHECK(view.dtype() == DeviceDType<T>::value)
      << name << " holds " << NameOf(view.dtype()) << ", not " << NameOf(DeviceDType<T>::value);
  using Element = std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const T, T>;
  return static_cast<Element*>(view.data());
}

// Whether rows of the view begin at multiples of 8 elements and 16 bytes. Empty views never stand
// in the way.
template <typename Pointer>
bool HasAlignedRows(const BasicTensorView<Pointer>& view) {
  if (view.empty()) return true;
  const bool strides = view.rows() <= 1 || view.row_stride() % 8 == 0;
  return strides && reinterpret_cast<uintptr_t>(view.data()) % 16 == 0;
}
// Whether they can also be read eight elements at a time: they are a multiple of 8 wide.
template <typename Pointer>
bool TakesVectors(const BasicTensorView<Pointer>& view) {
  return view.empty() || (view.cols() % 8 == 0 && HasAlignedRows(view));
}
template <typename... Views>
bool TakeVectors(const Views&... views) {
  return (TakesVectors(views) && ...);
}

}  // namespace filigree

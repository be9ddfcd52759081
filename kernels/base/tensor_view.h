// A non-owning view of a row-major tensor: up to four dimensions, the last one contiguous.
//
// Passed by value. All leading dimensions are collapsed over one `row_stride`: element (i, j) of a
// matrix lies at data[i * row_stride + j], so a column slice of a wider matrix is a view too.
// Tensors of more than two dimensions are seen as [rows, last dimension] with rows = product of the
// others.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "kernels/base/check.h"
#include "kernels/base/dtype.h"

namespace filigree {

// `Pointer` is void* (TensorView) or const void* (ConstTensorView).
template <typename Pointer>
class BasicTensorView {
 public:
  BasicTensorView() = default;

  // A contiguous tensor of the given shape.
  BasicTensorView(Pointer data, DType dtype, std::initializer_list<int64_t> shape)
      : data_(data), dtype_(dtype), rank_(static_cast<int>(shape.size())) {
    CHECK_LE(shape.size(), shape_.size());
    int i = 0;
    for (int64_t extent : shape) shape_[i++] = extent;
    row_stride_ = rank_ > 0 ? shape_[rank_ - 1] : 0;
  }

  // A matrix whose rows lie `row_stride` elements apart.
  static BasicTensorView Matrix(Pointer data, DType dtype, int64_t rows, int64_t cols,
                                int64_t row_stride) {
    BasicTensorView view(data, dtype, {rows, cols});
    CHECK_GE(row_stride, cols);
    view.row_stride_ = row_stride;
    return view;
  }

  // TensorView converts to ConstTensorView.
  template <typename Other>
  BasicTensorView(const BasicTensorView<Other>& other) requires(
      !std::is_same_v<Other, Pointer> && std::is_convertible_v<Other, Pointer>)
      : data_(other.data()),
        dtype_(other.dtype()),
        rank_(other.rank()),
        row_stride_(other.row_stride()) {
    for (int i = 0; i < rank_; ++i) shape_[i] = other.dim(i);
  }

  Pointer data() const { return data_; }
  DType dtype() const { return dtype_; }
  int rank() const { return rank_; }
  int64_t row_stride() const { return row_stride_; }
  bool empty() const { return data_ == nullptr || size() == 0; }

  int64_t dim(int i) const {
    CHECK(i >= 0 && i < rank_) << "dimension " << i << " of a tensor of rank " << rank_;
    return shape_[i];
  }
  int64_t size() const {
    if (rank_ == 0) return 0;
    int64_t size = 1;
    for (int i = 0; i < rank_; ++i) size *= shape_[i];
    return size;
  }
  int64_t cols() const { return rank_ > 0 ? shape_[rank_ - 1] : 0; }
  int64_t rows() const {
    if (rank_ == 0) return 0;
    int64_t rows = 1;
    for (int i = 0; i + 1 < rank_; ++i) rows *= shape_[i];
    return rows;
  }
  bool contiguous() const { return rows() <= 1 || row_stride_ == cols(); }
  size_t bytes() const { return static_cast<size_t>(size()) * SizeOf(dtype_); }

  // Typed pointer to the first element; the dtype is checked.
  template <typename T>
  auto As() const {
    CHECK(DTypeOf<T>::value == dtype_)
        << "tensor holds " << NameOf(dtype_) << ", asked as " << NameOf(DTypeOf<T>::value);
    if constexpr (std::is_const_v<std::remove_pointer_t<Pointer>>) {
      return static_cast<const T*>(data_);
    } else {
      return static_cast<T*>(data_);
    }
  }

  // Rows [begin, begin + count) of the [rows, cols] matrix this tensor is seen as.
  BasicTensorView Rows(int64_t begin, int64_t count) const {
    CHECK(begin >= 0 && begin + count <= rows());
    return Matrix(Offset(begin * row_stride_), dtype_, count, cols(), row_stride_);
  }
  // Columns [begin, begin + count) of that matrix.
  BasicTensorView Cols(int64_t begin, int64_t count) const {
    CHECK(begin >= 0 && begin + count <= cols());
    return Matrix(Offset(begin), dtype_, rows(), count, row_stride_);
  }
  // The contiguous elements as a vector, or a sub-range of them.
  BasicTensorView Flat() const {
    CHECK(contiguous());
    return BasicTensorView(data_, dtype_, {size()});
  }
  BasicTensorView Range(int64_t begin, int64_t count) const {
    CHECK(contiguous());
    CHECK(begin >= 0 && count >= 0 && begin + count <= size());
    return BasicTensorView(Offset(begin), dtype_, {count});
  }
  // The same contiguous elements under another shape.
  BasicTensorView Reshape(std::initializer_list<int64_t> shape) const {
    CHECK(contiguous());
    BasicTensorView view(data_, dtype_, shape);
    CHECK_EQ(view.size(), size());
    return view;
  }

 private:
  Pointer Offset(int64_t elements) const {
    if (data_ == nullptr) return nullptr;
    using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>,
                                    const std::byte, std::byte>;
    return static_cast<Byte*>(data_) + elements * static_cast<int64_t>(SizeOf(dtype_));
  }

  Pointer data_ = nullptr;
  DType dtype_ = DType::kF32;
  int rank_ = 0;
  std::array<int64_t, 4> shape_ = {0, 0, 0, 0};
  int64_t row_stride_ = 0;
};

using TensorView = BasicTensorView<void*>;
using ConstTensorView = BasicTensorView<const void*>;

}  // namespace filigree

// A sparse weight in cuSPARSE's formats: a peer for benchmarks, no kernel that trains, and so no row
// of the variant tables (kernels/README.md says why).
//
// W and, for the input's gradient, W^T are held apart: BSR has no transposed product, and CSR's
// takes atomic additions.
#pragma once

#include <cusparse.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/base/dtype.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/sparse/layout.h"

namespace filigree {

enum class CusparseFormat { kCsr, kBsr };

class CusparseWeight {
 public:
  // `values` as `layout`, which has no padding, stores them; blocked for kBsr. `device` must
  // outlive it.
  CusparseWeight(const SparseLayout& layout, std::span<const BFloat16> values,
                 CusparseFormat format, CudaDevice& device);
  ~CusparseWeight();
  CusparseWeight(const CusparseWeight&) = delete;
  CusparseWeight& operator=(const CusparseWeight&) = delete;

  // Contiguous BF16 matrices. False, and nothing done: cuSPARSE has no such product.
  bool Forward(ConstTensorView x, TensorView y, Stream& stream);      // y = x W^T
  bool InputGrad(ConstTensorView dy, TensorView dx, Stream& stream);  // dx = dy W
  bool WeightGrad(ConstTensorView dy, ConstTensorView x,
                  Stream& stream);  // dY^T X where W is stored

  // Stored positions as out * in + in_index, in the order of W's arrays here; and of the gradients.
  const std::vector<int64_t>& positions() const { return positions_; }
  std::vector<float> DownloadGradients(Stream& stream) const;

 private:
  // One sparse operand: arrays on the device, and what cuSPARSE keeps of it.
  struct Operand {
    DeviceBuffer offsets, indices, values, workspace;
    cusparseSpMatDescr_t descriptor = nullptr;
    bool prepared = false;
  };
  Operand Upload(int64_t rows, int64_t cols, int block_rows, int block_cols,
                 const std::vector<int32_t>& offsets, const std::vector<int32_t>& indices,
                 const DeviceBuffer& values, cudaDataType type);
  DeviceBuffer ToDevice(const void* data, size_t bytes);
  // out^T = operand in^T.
  bool Multiply(Operand& operand, ConstTensorView in, TensorView out, Stream& stream);

  CudaDevice& device_;
  const CusparseFormat format_;
  cusparseHandle_t handle_ = nullptr;
  Operand weight_, transposed_, gradient_;
  std::vector<int64_t> positions_;
};

}  // namespace filigree

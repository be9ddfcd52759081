#include "kernels/cuda/tensor_map.h"

#include "kernels/cuda/cuda_check.h"

namespace filigree {
namespace {

using EncodeFunction = decltype(&cuTensorMapEncodeTiled);

// Through the runtime, so that nothing links against the driver and CPU-only machines can load us.
EncodeFunction GetEncode() {
  static const EncodeFunction encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                cudaEnableDefault, &found));
    CHECK(found == cudaDriverEntryPointSuccess) << "the driver has no cuTensorMapEncodeTiled";
    return reinterpret_cast<EncodeFunction>(function);
  }();
  return encode;
}

struct MapFormat {
  CUtensorMapDataType type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  CUtensorMapSwizzle swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
};

CUtensorMap Encode(const void* data, int rank, const cuuint64_t* dims, const cuuint64_t* strides,
                   const cuuint32_t* box, const MapFormat& format = {}) {
  constexpr cuuint32_t kUnitStrides[3] = {1, 1, 1};
  CUtensorMap map;
  const CUresult result = GetEncode()(
      &map, format.type, rank, const_cast<void*>(data), dims, strides, box,
      kUnitStrides, CU_TENSOR_MAP_INTERLEAVE_NONE, format.swizzle,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  CHECK(result == CUDA_SUCCESS) << "cuTensorMapEncodeTiled: error " << result << ", rank " << rank
                                << ", dims " << dims[0] << "x" << dims[1];
  return map;
}

}  // namespace

CUtensorMap EncodeChunkMap(const void* data, int64_t rows, int64_t cols, int64_t row_stride,
                           int box_rows) {
  const cuuint64_t dims[3] = {64, static_cast<cuuint64_t>(rows),
                              static_cast<cuuint64_t>(cols / 64)};
  const cuuint64_t strides[2] = {static_cast<cuuint64_t>(row_stride) * 2, 128};
  const cuuint32_t box[3] = {64, static_cast<cuuint32_t>(box_rows), 1};
  return Encode(data, 3, dims, strides, box);
}

CUtensorMap EncodeStoreMap(void* data, int64_t rows, int64_t cols, int64_t row_stride,
                           int box_rows) {
  const cuuint64_t dims[2] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(row_stride) * 2};
  const cuuint32_t box[2] = {64, static_cast<cuuint32_t>(box_rows)};
  return Encode(data, 2, dims, strides, box);
}

CUtensorMap EncodeByteMap(const void* data, int64_t rows, int64_t cols, int64_t row_stride,
                          int box_rows) {
  const cuuint64_t dims[2] = {static_cast<cuuint64_t>(cols), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(row_stride)};
  const cuuint32_t box[2] = {64, static_cast<cuuint32_t>(box_rows)};
  return Encode(data, 2, dims, strides, box,
                {CU_TENSOR_MAP_DATA_TYPE_UINT8, CU_TENSOR_MAP_SWIZZLE_64B});
}

}  // namespace filigree

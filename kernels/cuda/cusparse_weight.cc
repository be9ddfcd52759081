#include "kernels/cuda/cusparse_weight.h"

#include <algorithm>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/cuda/cuda_check.h"

#define CUSPARSE_CHECK(call) \
  FILIGREE_LIBRARY_CHECK(call, cusparseStatus_t, CUSPARSE_STATUS_SUCCESS, cusparseGetErrorString)

namespace filigree {
namespace {

// A matrix of blocks (cells are blocks of one) in the order of its rows.
struct BlockRows {
  std::vector<int32_t> offsets, indices;
  std::vector<int64_t> blocks;  // which block of the layout each is
};

BlockRows RowsOf(const SparseLayout& layout) {
  BlockRows rows;
  rows.offsets.assign(layout.row_offsets().begin(), layout.row_offsets().end());
  rows.indices.assign(layout.columns().begin(), layout.columns().end());
  for (int64_t i = 0; i < layout.block_count(); ++i) rows.blocks.push_back(i);
  return rows;
}

BlockRows ColumnsOf(const SparseLayout& layout) {
  SparseLayout::Transposed transposed = layout.Transpose();
  BlockRows rows;
  rows.offsets.assign(transposed.column_offsets.begin(), transposed.column_offsets.end());
  rows.indices = std::move(transposed.rows);
  rows.blocks = std::move(transposed.slots);
  return rows;
}

// The same with every block taken apart into the cells of `height` rows by `width` columns. `cells`
// are then those of the blocks, each `stride_row` and `stride_col` apart.
BlockRows CellsOf(const BlockRows& rows, int height, int width, int stride_row, int stride_col) {
  BlockRows cells;
  cells.offsets.push_back(0);
  const int64_t area = int64_t{height} * width;
  for (size_t row = 0; row + 1 < rows.offsets.size(); ++row) {
    for (int r = 0; r < height; ++r) {
      for (int32_t i = rows.offsets[row]; i < rows.offsets[row + 1]; ++i) {
        for (int c = 0; c < width; ++c) {
          cells.indices.push_back(rows.indices[i] * width + c);
          cells.blocks.push_back(rows.blocks[i] * area + r * stride_row + c * stride_col);
        }
      }
      cells.offsets.push_back(static_cast<int32_t>(cells.indices.size()));
    }
  }
  return cells;
}

// For each element of a BSR value array its slot in the layout: blocks in the order of `rows`, the
// cells of each row by row.
std::vector<int64_t> SlotsOf(const BlockRows& rows, int height, int width, int stride_row,
                             int stride_col) {
  std::vector<int64_t> slots;
  const int64_t area = int64_t{height} * width;
  slots.reserve(rows.blocks.size() * area);
  for (const int64_t block : rows.blocks) {
    for (int r = 0; r < height; ++r) {
      for (int c = 0; c < width; ++c) {
        slots.push_back(block * area + r * stride_row + c * stride_col);
      }
    }
  }
  return slots;
}

std::vector<BFloat16> Gather(std::span<const BFloat16> values, const std::vector<int64_t>& slots) {
  std::vector<BFloat16> gathered;
  gathered.reserve(slots.size());
  for (const int64_t slot : slots) gathered.push_back(values[slot]);
  return gathered;
}

// A row-major matrix [rows, cols] as cuSPARSE's column-major [cols, rows], or as it is.
class DenseMatrix {
 public:
  DenseMatrix(ConstTensorView view, bool transposed) {
    CHECK(view.contiguous() && view.dtype() == DType::kBF16);
    const int64_t rows = transposed ? view.cols() : view.rows();
    const int64_t cols = transposed ? view.rows() : view.cols();
    CUSPARSE_CHECK(cusparseCreateDnMat(&descriptor_, rows, cols, view.cols(),
                                       const_cast<void*>(view.data()), CUDA_R_16BF,
                                       transposed ? CUSPARSE_ORDER_COL : CUSPARSE_ORDER_ROW));
  }
  ~DenseMatrix() { cusparseDestroyDnMat(descriptor_); }
  DenseMatrix(const DenseMatrix&) = delete;
  DenseMatrix& operator=(const DenseMatrix&) = delete;
  cusparseDnMatDescr_t get() const { return descriptor_; }

 private:
  cusparseDnMatDescr_t descriptor_ = nullptr;
};

constexpr float kOne = 1, kZero = 0;

}  // namespace

DeviceBuffer CusparseWeight::ToDevice(const void* data, size_t bytes) {
  DeviceBuffer buffer = device_.Allocate(std::max<size_t>(bytes, 16), "scratch");
  CUDA_CHECK(cudaMemcpy(buffer.data(), data, bytes, cudaMemcpyHostToDevice));
  return buffer;
}

CusparseWeight::Operand CusparseWeight::Upload(int64_t rows, int64_t cols, int block_rows,
                                               int block_cols, const std::vector<int32_t>& offsets,
                                               const std::vector<int32_t>& indices,
                                               const DeviceBuffer& values, cudaDataType type) {
  Operand operand;
  operand.offsets = ToDevice(offsets.data(), offsets.size() * sizeof(int32_t));
  operand.indices = ToDevice(indices.data(), indices.size() * sizeof(int32_t));
  const auto count = static_cast<int64_t>(indices.size());
  if (format_ == CusparseFormat::kCsr) {
    CUSPARSE_CHECK(cusparseCreateCsr(&operand.descriptor, rows, cols, count, operand.offsets.data(),
                                     operand.indices.data(), values.data(), CUSPARSE_INDEX_32I,
                                     CUSPARSE_INDEX_32I, CUSPARSE_INDEX_BASE_ZERO, type));
  } else {
    CUSPARSE_CHECK(cusparseCreateBsr(
        &operand.descriptor, rows / block_rows, cols / block_cols, count, block_rows, block_cols,
        operand.offsets.data(), operand.indices.data(), values.data(), CUSPARSE_INDEX_32I,
        CUSPARSE_INDEX_32I, CUSPARSE_INDEX_BASE_ZERO, type, CUSPARSE_ORDER_ROW));
  }
  return operand;
}

CusparseWeight::CusparseWeight(const SparseLayout& layout, std::span<const BFloat16> values,
                               CusparseFormat format, CudaDevice& device)
    : device_(device), format_(format) {
  CHECK(layout.kind() == LayoutKind::kBlocked || layout.kind() == LayoutKind::kUnstructured);
  CHECK(format == CusparseFormat::kCsr || layout.kind() == LayoutKind::kBlocked);
  CHECK_EQ(layout.stored_count(), layout.nonzero_count()) << "padding";
  CHECK_EQ(static_cast<int64_t>(values.size()), layout.stored_count());
  CHECK_LT(layout.stored_count(), int64_t{1} << 31);
  CUSPARSE_CHECK(cusparseCreate(&handle_));
  const int height = layout.block_out(), width = layout.block_in();
  BlockRows rows = RowsOf(layout), columns = ColumnsOf(layout);
  // A cell (r, c) of a block lies at r * width + c in the layout, whichever way the block is read.
  std::vector<int64_t> slots, transposed_slots;
  if (format == CusparseFormat::kCsr) {
    rows = CellsOf(rows, height, width, width, 1);
    columns = CellsOf(columns, width, height, 1, width);
    slots = std::move(rows.blocks);
    transposed_slots = std::move(columns.blocks);
  } else {
    slots = SlotsOf(rows, height, width, width, 1);
    transposed_slots = SlotsOf(columns, width, height, 1, width);
  }
  const std::vector<int64_t> logical = layout.LogicalIndices();
  for (const int64_t slot : slots) positions_.push_back(logical[slot]);
  const auto upload = [&](const std::vector<int64_t>& order) {
    const std::vector<BFloat16> ordered = Gather(values, order);
    return ToDevice(ordered.data(), ordered.size() * sizeof(BFloat16));
  };
  DeviceBuffer straight = upload(slots), turned = upload(transposed_slots);
  DeviceBuffer gradients =
      device.Allocate(std::max<size_t>(slots.size() * sizeof(float), 16), "scratch");
  CUDA_CHECK(cudaMemset(gradients.data(), 0, gradients.bytes()));
  weight_ = Upload(layout.out(), layout.in(), height, width, rows.offsets, rows.indices, straight,
                   CUDA_R_16BF);
  transposed_ = Upload(layout.in(), layout.out(), width, height, columns.offsets, columns.indices,
                       turned, CUDA_R_16BF);
  gradient_ = Upload(layout.out(), layout.in(), height, width, rows.offsets, rows.indices,
                     gradients, CUDA_R_32F);
  weight_.values = std::move(straight);
  transposed_.values = std::move(turned);
  gradient_.values = std::move(gradients);
}

CusparseWeight::~CusparseWeight() {
  for (const Operand* operand : {&weight_, &transposed_, &gradient_}) {
    cusparseDestroySpMat(operand->descriptor);
  }
  cusparseDestroy(handle_);
}

bool CusparseWeight::Multiply(Operand& operand, ConstTensorView in, TensorView out,
                              Stream& stream) {
  const DenseMatrix b(in, /*transposed=*/true), c(out, /*transposed=*/true);
  constexpr auto kPlain = CUSPARSE_OPERATION_NON_TRANSPOSE;
  const auto algorithm =
      format_ == CusparseFormat::kBsr ? CUSPARSE_SPMM_BSR_ALG1 : CUSPARSE_SPMM_ALG_DEFAULT;
  CUSPARSE_CHECK(cusparseSetStream(handle_, NativeStream(stream)));
  if (!operand.prepared) {
    size_t bytes = 0;
    if (cusparseSpMM_bufferSize(handle_, kPlain, kPlain, &kOne, operand.descriptor, b.get(), &kZero,
                                c.get(), CUDA_R_32F, algorithm,
                                &bytes) != CUSPARSE_STATUS_SUCCESS) {
      return false;
    }
    operand.workspace = device_.Allocate(std::max<size_t>(bytes, 16), "scratch");
    if (cusparseSpMM_preprocess(handle_, kPlain, kPlain, &kOne, operand.descriptor, b.get(), &kZero,
                                c.get(), CUDA_R_32F, algorithm,
                                operand.workspace.data()) != CUSPARSE_STATUS_SUCCESS) {
      return false;
    }
    operand.prepared = true;
  }
  const cusparseStatus_t status =
      cusparseSpMM(handle_, kPlain, kPlain, &kOne, operand.descriptor, b.get(), &kZero, c.get(),
                   CUDA_R_32F, algorithm, operand.workspace.data());
  if (status == CUSPARSE_STATUS_NOT_SUPPORTED) return false;
  CUSPARSE_CHECK(status);
  return true;
}

bool CusparseWeight::Forward(ConstTensorView x, TensorView y, Stream& stream) {
  return Multiply(weight_, x, y, stream);
}

bool CusparseWeight::InputGrad(ConstTensorView dy, TensorView dx, Stream& stream) {
  return Multiply(transposed_, dy, dx, stream);
}

bool CusparseWeight::WeightGrad(ConstTensorView dy, ConstTensorView x, Stream& stream) {
  const DenseMatrix a(dy, /*transposed=*/true), b(x, /*transposed=*/false);
  constexpr auto kPlain = CUSPARSE_OPERATION_NON_TRANSPOSE;
  CUSPARSE_CHECK(cusparseSetStream(handle_, NativeStream(stream)));
  if (!gradient_.prepared) {
    size_t bytes = 0;
    if (cusparseSDDMM_bufferSize(handle_, kPlain, kPlain, &kOne, a.get(), b.get(), &kZero,
                                 gradient_.descriptor, CUDA_R_32F, CUSPARSE_SDDMM_ALG_DEFAULT,
                                 &bytes) != CUSPARSE_STATUS_SUCCESS) {
      return false;
    }
    gradient_.workspace = device_.Allocate(std::max<size_t>(bytes, 16), "scratch");
    if (cusparseSDDMM_preprocess(handle_, kPlain, kPlain, &kOne, a.get(), b.get(), &kZero,
                                 gradient_.descriptor, CUDA_R_32F, CUSPARSE_SDDMM_ALG_DEFAULT,
                                 gradient_.workspace.data()) != CUSPARSE_STATUS_SUCCESS) {
      return false;
    }
    gradient_.prepared = true;
  }
  const cusparseStatus_t status =
      cusparseSDDMM(handle_, kPlain, kPlain, &kOne, a.get(), b.get(), &kZero, gradient_.descriptor,
                    CUDA_R_32F, CUSPARSE_SDDMM_ALG_DEFAULT, gradient_.workspace.data());
  if (status == CUSPARSE_STATUS_NOT_SUPPORTED) return false;
  CUSPARSE_CHECK(status);
  return true;
}

std::vector<float> CusparseWeight::DownloadGradients(Stream& stream) const {
  stream.Synchronize();
  std::vector<float> gradients(positions_.size());
  CUDA_CHECK(cudaMemcpy(gradients.data(), gradient_.values.data(), gradients.size() * sizeof(float),
                        cudaMemcpyDeviceToHost));
  return gradients;
}

}  // namespace filigree

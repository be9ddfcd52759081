// The CUDA implementation of every operation of kernels/backend.h, tested against the CPU's.
//
// Activations and values are BF16; gradients F32 or BF16 (BF16 ones are summed in F32 and rounded
// once an operation); master, moments, norm statistics, log-sum-exp and losses F32. Rows of views
// begin at multiples of 16 bytes and have widths that are multiples of 8 elements where a matrix
// product reads or writes them (padded vocabularies and feed-forward widths, and model widths are);
// other operations take any width. Every operation is deterministic, without float atomics; two are
// so on demand only (set_deterministic): attention's backward pass by cuDNN, and, from one process
// to the next, large matrix products, whose algorithm is the fastest of some that were timed.
//
// What an operation needs beside its arguments comes from one workspace and from PreparedLayout.
// The workspace grows when a shape first needs more, which waits for the device; the second time
// around a shape allocates nothing: run each shape once before capturing a graph.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <memory>

#include "kernels/backend.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/device_index.h"

namespace filigree {

// Plans of matrix products, chosen by cuBLASLt's heuristics once a shape.
class MatMulPlans;
// cuDNN's attention graphs, one a shape (attention_plans.h); declines every shape without cuDNN.
class AttentionPlans;
// Which product with a 2:4 weight is the faster, one a shape (two_four_plans.h).
class TwoFourPlans;

class CudaBackend final : public Backend {
 public:
  // `device` must outlive the backend.
  explicit CudaBackend(CudaDevice& device);
  ~CudaBackend() override;

  Device& device() override { return device_; }
  void set_deterministic(bool deterministic) override { deterministic_ = deterministic; }
  bool joins_products() const override { return true; }

  void MatMul(const MatMulArgs& args, Stream& stream) override;
  void ColumnSum(const ColumnSumArgs& args, Stream& stream) override;
  void RmsNorm(const RmsNormArgs& args, Stream& stream) override;
  void RmsNormBackward(const RmsNormBackwardArgs& args, Stream& stream) override;
  void LayerNorm(const LayerNormArgs& args, Stream& stream) override;
  void LayerNormBackward(const LayerNormBackwardArgs& args, Stream& stream) override;
  void SwiGlu(const SwiGluArgs& args, Stream& stream) override;
  void SwiGluBackward(const SwiGluBackwardArgs& args, Stream& stream) override;
  void Gelu(const GeluArgs& args, Stream& stream) override;
  void GeluBackward(const GeluBackwardArgs& args, Stream& stream) override;
  void Add(const AddArgs& args, Stream& stream) override;

  std::unique_ptr<PreparedLayout> PrepareLayout(const SparseLayout& layout) override;
  // On Hopper, for blocks of 64 and 128 that divide the weights.
  std::unique_ptr<PreparedLayout> PrepareGroup(std::span<const PreparedLayout* const> parts,
                                               std::span<const int64_t> value_begin) override;
  double BlockedFlopCost(const SparseLayout& layout) const override;
  void Spmm(const SpmmArgs& args, Stream& stream) override;
  void SpmmTransposed(const SpmmTransposedArgs& args, Stream& stream) override;
  void Sddmm(const SddmmArgs& args, Stream& stream) override;
  void ScatterStored(const ScatterStoredArgs& args, Stream& stream) override {
    ScatterGroup({&args, 1}, stream);
  }
  void GatherStored(const GatherStoredArgs& args, Stream& stream) override {
    GatherGroup({&args, 1}, stream);
  }
  void ScatterGroup(std::span<const ScatterStoredArgs> parts, Stream& stream) override;
  void GatherGroup(std::span<const GatherStoredArgs> parts, Stream& stream) override;
  // Through cuSPARSELt, where it is found; not if deterministic.
  std::unique_ptr<TwoFourWeight> PrepareTwoFour(ConstTensorView weight, TwoFourKind kind) override;
  int64_t TwoFourBytes(int64_t out, int64_t in, TwoFourKind kind) const override;

  void Rope(const RopeArgs& args, Stream& stream) override;
  void Attention(const AttentionArgs& args, Stream& stream) override;
  void AttentionBackward(const AttentionBackwardArgs& args, Stream& stream) override;

  void Embedding(const EmbeddingArgs& args, Stream& stream) override;
  void EmbeddingBackward(const EmbeddingBackwardArgs& args, Stream& stream) override;
  void CrossEntropy(const CrossEntropyArgs& args, Stream& stream) override;
  void DistillationLoss(const DistillationLossArgs& args, Stream& stream) override;

  void AdamW(const AdamWArgs& args, Stream& stream) override;
  void SumOfSquares(const SumOfSquaresArgs& args, Stream& stream) override;
  void ClipScale(const ClipScaleArgs& args, Stream& stream) override;
  void Round(const RoundArgs& args, Stream& stream) override;

  void UnitSums(const UnitSumsArgs& args, Stream& stream) override;
  void ScaleUnits(const ScaleUnitsArgs& args, Stream& stream) override;

  void Widen(const WidenArgs& args, Stream& stream) override;
  void Quantize(const QuantizeArgs& args, Stream& stream) override;
  void Dequantize(const DequantizeArgs& args, Stream& stream) override;
  void MapStored(const MapStoredArgs& args, Stream& stream) override;
  void TakeStored(const TakeStoredArgs& args, Stream& stream) override;
  void DrawStored(const DrawStoredArgs& args, Stream& stream) override;
  void AddColumns(const AddColumnsArgs& args, Stream& stream) override;

  void MarkStored(const MarkStoredArgs& args, Stream& stream) override;
  void ScoreUnits(const ScoreUnitsArgs& args, Stream& stream) override;
  void SelectHighest(const SelectHighestArgs& args, Stream& stream) override;
  std::unique_ptr<PreparedLayout> LayoutOfMarks(const SparseLayout& like, ConstTensorView marks,
                                                Stream& stream) override;

  // For the operations: device memory of at least `bytes`, free until the next operation on the
  // same stream (whose operands may lie in it if it is a MatMul). Operations of two streams must
  // not use it at once: the trainer computes on one.
  std::byte* Workspace(size_t bytes) { return Reserve(&workspace_, bytes); }
  // SddmmKernelArgs::pace and ::arrivals.
  uint32_t* sddmm_pace() { return static_cast<uint32_t*>(sddmm_counters_.data()); }
  uint32_t* sddmm_arrivals();
  CudaDevice& cuda_device() { return device_; }
  // cuBLASLt's, which any matrix product on the same stream may use.
  MatMulPlans& matmul_plans() { return *matmul_plans_; }

 private:
  std::byte* Reserve(DeviceBuffer* buffer, size_t bytes);
  // Pinned host memory of at least `bytes`, until the next call.
  std::byte* Landing(size_t bytes);

  CudaDevice& device_;
  DeviceBuffer workspace_;
  DeviceBuffer product_;      // MatMul's own: its operands may lie in the workspace
  DeviceBuffer landing_;      // pinned: what an operation brings to the host
  DeviceBuffer sum_counter_;  // one U32 of SumOfSquares, zero between its launches
  DeviceBuffer sddmm_counters_;  // zeros between launches of the Hopper SDDMM
  DeviceIndices indices_;
  std::unique_ptr<MatMulPlans> matmul_plans_;
  std::unique_ptr<AttentionPlans> attention_plans_;
  std::shared_ptr<TwoFourPlans> two_four_plans_;  // from the first such weight on
  bool deterministic_ = false;
};

}  // namespace filigree

// The CPU implementation of every operation of kernels/backend.h: the specification that other
// backends are tested against, and what a user without a GPU runs.
//
// Views are F32, or all F64 (gradient tests); other dtypes are a CHECK. Work is spread over
// CpuThreads() threads (kernels/cpu/parallel.h) by outputs. Results are the same at every call, and
// for every number of threads; only MatMul, which gives each thread a part of the product and
// leaves the order of sums to OpenBLAS, may differ between numbers of threads, by rounding. Scratch
// is kept by each thread and grows to the largest call: a transposed copy of the widest blocked
// weight, a panel of activations, a strip of attention scores.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace filigree {

// Not final: a planned GPU (kernels/planned) computes nothing and answers questions of size alone.
class CpuBackend : public Backend {
 public:
  // `device` must outlive the backend.
  explicit CpuBackend(Device& device) : device_(device) {}

  Device& device() override { return device_; }
  void set_deterministic(bool) override {}

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
  void Spmm(const SpmmArgs& args, Stream& stream) override;
  void SpmmTransposed(const SpmmTransposedArgs& args, Stream& stream) override;
  void Sddmm(const SddmmArgs& args, Stream& stream) override;
  void ScatterStored(const ScatterStoredArgs& args, Stream& stream) override;
  void GatherStored(const GatherStoredArgs& args, Stream& stream) override;

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

 private:
  Device& device_;
};

}  // namespace filigree

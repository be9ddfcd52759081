// How training state is held and moved: operations of the backend (kernels/backend.h) that bring the
// arrays of a FlatBuffer (comm/flat_buffer.h) to plain numbers and back, and stored values from one
// layout to another. What starts, topology updates, phase changes, pruning and compaction are made of,
// without a detour over the host.
//
// Every result is exact: the same bits on every backend.
#pragma once

#include <cstdint>

#include "kernels/base/block_quantization.h"
#include "kernels/base/device.h"
#include "kernels/base/rng.h"
#include "kernels/base/tensor_view.h"

namespace filigree {

class PreparedLayout;

// out = in. Contiguous.
struct WidenArgs {
  ConstTensorView in;  // BF16
  TensorView out;      // F32
};

// QuantizeBlocks and DequantizeBlocks (block_quantization.h), of n values whose blocks begin at the
// first.
struct QuantizeArgs {
  QuantizationMap map = QuantizationMap::kSigned;
  ConstTensorView in;  // [n] F32
  TensorView codes;    // [n] U8
  TensorView scales;   // [ceil(n / 256)] F32
};
struct DequantizeArgs {
  QuantizationMap map = QuantizationMap::kSigned;
  ConstTensorView codes, scales;  // as above
  TensorView out;                 // [n] F32
};

// What stands for a slot of another layout where there is none.
inline constexpr int32_t kNewCell = -1;      // the other layout does not store the cell
inline constexpr int32_t kPaddingCell = -2;  // the slot is padding

// For each stored slot of `to` the slot of `from` that holds the same logical cell, or kNewCell or
// kPaddingCell. Layouts of any kind, of fewer than 2^31 stored slots. With `rows` and `columns`,
// cell (r, c) of `to` is cell (rows[r], columns[c]) of `from`; without, both have one shape.
struct MapStoredArgs {
  const PreparedLayout* from = nullptr;
  const PreparedLayout* to = nullptr;
  ConstTensorView rows = {}, columns = {};  // [to.out], [to.in] I32, or empty
  TensorView slots;                         // [to.stored_count] I32
};

// to[i] = from[slots[i]]; `fresh` where that is kNewCell, else 0: also beyond the slots, where
// segments have padding of their own.
struct TakeStoredArgs {
  ConstTensorView from;   // F32
  ConstTensorView slots;  // [n] I32
  TensorView to;          // [at least n] F32, contiguous, none of `from`'s memory
  float fresh = 0;
};

// out[i] = draw(cell of the layout's stored slot first + i), rounded to F32; 0 where that is padding,
// also past the last stored slot, where segments have padding of their own.
struct DrawStoredArgs {
  const PreparedLayout* layout = nullptr;  // of any kind; indices below 2^32 blocks or cells
  CellDraw draw;
  int64_t first = 0;
  TensorView out;  // [n] F32, contiguous
};

// Columns of a matrix in place, with those that do not change: for i in [0, n) and every row,
//   weight[row, rest[i]] += weight[row, gone[k]] * factors[k, i],    k = 0, 1, ... in turn,
// each term added in F64 and the sum rounded to F32.
struct AddColumnsArgs {
  TensorView weight;           // [rows, columns] F32
  ConstTensorView gone, rest;  // [q], [n] I32 columns; none is in both, `rest` has none twice
  ConstTensorView factors;     // [q, n] F64, contiguous
};

class StateOps {
 public:
  virtual ~StateOps() = default;
  virtual void Widen(const WidenArgs& args, Stream& stream) = 0;
  virtual void Quantize(const QuantizeArgs& args, Stream& stream) = 0;
  virtual void Dequantize(const DequantizeArgs& args, Stream& stream) = 0;
  virtual void MapStored(const MapStoredArgs& args, Stream& stream) = 0;
  virtual void TakeStored(const TakeStoredArgs& args, Stream& stream) = 0;
  virtual void DrawStored(const DrawStoredArgs& args, Stream& stream) = 0;
  virtual void AddColumns(const AddColumnsArgs& args, Stream& stream) = 0;
};

}  // namespace filigree

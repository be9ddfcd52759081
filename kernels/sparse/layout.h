// Sparsity layouts on the host: which cells of a logical weight [out, in] are stored, and in what
// order.
//
// A SparseLayout is an immutable value (copies share the index buffers). Four kinds:
//   dense         all cells, row-major; rows lie a pitch apart, and what fills them up is padding
//                 as an edge block's is;
//   unstructured  single cells; row pointers and sorted columns (CSR); stored in row-major order;
//   blocked       block_out x block_in blocks; row pointers and sorted columns over the grid of
//   blocks
//                 (BSR); blocks in block-row-major order, cells row-major within a block. The grid
//                 covers the padded weight: an edge block is stored whole, its cells outside the
//                 weight are padding that stays zero and is left out of `nonzero_count`.
//   n_m           n of every m consecutive cells of a row; stored in row-major order.
// "Stored slot" p of a layout is element p of the parameter's segment in the flat buffers.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/base/status.h"

namespace filigree {

enum class LayoutKind : uint8_t { kDense, kUnstructured, kBlocked, kNM };

// "dense", "unstructured", "blocked", "n_m".
const char* NameOf(LayoutKind kind);

class SparseLayout {
 public:
  // A layout of nothing ([0, 0], dense).
  SparseLayout();

  // Rows begin `row_pitch` >= in slots apart; 0 stands for in.
  static SparseLayout Dense(int64_t out, int64_t in, int64_t row_pitch = 0);
  // `row_offsets` has out + 1 entries; `columns` are strictly increasing within each row.
  static StatusOr<SparseLayout> Unstructured(int64_t out, int64_t in,
                                             std::vector<int64_t> row_offsets,
                                             std::vector<int32_t> columns);
  // The same over the grid [ceil(out / block_out), ceil(in / block_in)].
  static StatusOr<SparseLayout> Blocked(int64_t out, int64_t in, int block_out, int block_in,
                                        std::vector<int64_t> row_offsets,
                                        std::vector<int32_t> columns);
  // `columns` as for Unstructured, with exactly n of every m columns of each row; in % m == 0.
  static StatusOr<SparseLayout> NM(int64_t out, int64_t in, int n, int m,
                                   std::vector<int32_t> columns);

  LayoutKind kind() const { return data_->kind; }
  int64_t out() const { return data_->out; }
  int64_t in() const { return data_->in; }
  int64_t logical_count() const { return out() * in(); }
  // Elements of the flat segment: padding of edge blocks and dense rows included.
  int64_t stored_count() const { return data_->stored_count; }
  // Stored cells that lie inside the weight. Equal to stored_count() but for padding.
  int64_t nonzero_count() const { return data_->nonzero_count; }
  // 1 - nonzero_count / logical_count.
  double sparsity() const;

  // Blocks (1 x 1 for the other kinds) and the grid they form.
  int block_out() const { return data_->block_out; }
  int block_in() const { return data_->block_in; }
  int64_t grid_rows() const;
  int64_t grid_cols() const;
  int64_t block_count() const { return static_cast<int64_t>(data_->columns.size()); }
  // Slots from one row of a dense layout to the next, else 0.
  int64_t row_pitch() const { return data_->row_pitch; }
  // n and m of an n_m layout, else 0.
  int n() const { return data_->n; }
  int m() const { return data_->m; }

  // CSR over cells (unstructured, n_m) or over blocks (blocked); empty for dense.
  std::span<const int64_t> row_offsets() const { return data_->row_offsets; }
  std::span<const int32_t> columns() const { return data_->columns; }

  // The transposed index of the same stored entries: for each grid column, the grid rows in
  // increasing order, and for each entry the index of the cell or block in stored order. Values
  // never move.
  struct Transposed {
    std::vector<int64_t> column_offsets;  // grid_cols + 1
    std::vector<int32_t> rows;
    std::vector<int64_t> slots;  // index of the entry in stored order
  };
  // Built on first use by whoever needs it; empty for dense.
  Transposed Transpose() const;

  // For each stored slot its logical index out_index * in + in_index, or -1 for padding.
  std::vector<int64_t> LogicalIndices() const;

  // 64 bits over kind, shape and indices: equal layouts have equal fingerprints, and ranks compare
  // them. A dense layout's pitch, which only a device asks for, does not enter.
  uint64_t fingerprint() const { return data_->fingerprint; }
  bool operator==(const SparseLayout& other) const;

 private:
  struct Data {
    LayoutKind kind = LayoutKind::kDense;
    int64_t out = 0, in = 0;
    int block_out = 1, block_in = 1;
    int n = 0, m = 0;
    int64_t row_pitch = 0;
    int64_t stored_count = 0, nonzero_count = 0;
    std::vector<int64_t> row_offsets;
    std::vector<int32_t> columns;
    uint64_t fingerprint = 0;
  };
  explicit SparseLayout(Data data);

  std::shared_ptr<const Data> data_;
};

// For each stored slot of `to`, the slot of `from` that holds the same logical cell, or -1 where
// the cell is new (or padding). Both layouts have the same logical shape.
std::vector<int64_t> IndexRemap(const SparseLayout& from, const SparseLayout& to);

}  // namespace filigree

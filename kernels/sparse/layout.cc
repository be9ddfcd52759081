#include "kernels/sparse/layout.h"

#include <xxhash.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <sstream>
#include <utility>

#include "kernels/base/check.h"
#include "kernels/base/math.h"
#include "kernels/sparse/stored_runs.h"

namespace filigree {
namespace {

constexpr int64_t kMaxEntries = std::numeric_limits<int32_t>::max();

template <typename... Parts>
Status Invalid(const Parts&... parts) {
  std::ostringstream message;
  message << "sparse layout: ";
  (message << ... << parts);
  return InvalidInput(message.str());
}

Status CheckShape(int64_t out, int64_t in, int64_t block_out, int64_t block_in) {
  if (out < 0 || in < 0 || in > kMaxEntries || out > kMaxEntries) {
    return Invalid("shape [", out, ", ", in, "] is not between 0 and ", kMaxEntries);
  }
  if (block_out < 1 || block_in < 1) {
    return Invalid("block of ", block_out, " x ", block_in, "; sides are at least 1");
  }
  return OkStatus();
}

// Whether columns strictly increase within [0, cols).
bool Increases(const int32_t* columns, int64_t count, int64_t cols) {
  if (count == 0) return true;
  bool falls = false;
  for (int64_t i = 1; i < count; ++i) falls |= columns[i] <= columns[i - 1];
  return !falls && columns[0] >= 0 && columns[count - 1] < cols;
}

// `row` and `column` are what the messages call them: "row" or "block row".
Status CheckRows(int64_t rows, int64_t cols, const std::vector<int64_t>& offsets,
                 const std::vector<int32_t>& columns, const char* row) {
  if (static_cast<int64_t>(offsets.size()) != rows + 1) {
    return Invalid(offsets.size(), " row offsets for ", rows, " ", row, "s; ", rows + 1, " needed");
  }
  const int64_t count = static_cast<int64_t>(columns.size());
  if (offsets.front() != 0 || offsets.back() != count) {
    return Invalid("row offsets run from ", offsets.front(), " to ", offsets.back(),
                   "; they must run from 0 to the ", count, " columns");
  }
  for (int64_t r = 0; r < rows; ++r) {
    if (offsets[r] > offsets[r + 1]) {
      return Invalid(row, " ", r, ": ends at ", offsets[r + 1], " before it begins at ",
                     offsets[r]);
    }
  }
  // While a topology moves everyone waits for this: what is wrong is looked for only where
  // something is.
  bool good = true;
#pragma omp parallel for reduction(&& : good)
  for (int64_t r = 0; r < rows; ++r) {
    good = good && Increases(columns.data() + offsets[r], offsets[r + 1] - offsets[r], cols);
  }
  if (good) return OkStatus();
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t p = offsets[r]; p < offsets[r + 1]; ++p) {
      if (columns[p] < 0 || columns[p] >= cols) {
        return Invalid(row, " ", r, ": column ", columns[p], " is outside [0, ", cols, ")");
      }
      if (p > offsets[r] && columns[p] <= columns[p - 1]) {
        return Invalid(row, " ", r, ": column ", columns[p], " after ", columns[p - 1],
                       "; columns must strictly increase");
      }
    }
  }
  return OkStatus();
}

}  // namespace

const char* NameOf(LayoutKind kind) {
  switch (kind) {
    case LayoutKind::kDense:
      return "dense";
    case LayoutKind::kUnstructured:
      return "unstructured";
    case LayoutKind::kBlocked:
      return "blocked";
    case LayoutKind::kNM:
      return "n_m";
  }
  CHECK(false) << "layout kind " << static_cast<int>(kind);
  return "";
}

SparseLayout::SparseLayout() : SparseLayout(Data()) {}

SparseLayout::SparseLayout(Data data) {
  const int64_t height = data.block_out, width = data.block_in;
  if (data.kind == LayoutKind::kDense) {
    data.stored_count = data.out * data.row_pitch;
    data.nonzero_count = data.out * data.in;
  } else {
    data.stored_count = static_cast<int64_t>(data.columns.size()) * height * width;
    data.nonzero_count = height * width == 1 ? data.stored_count : 0;
    const auto grid_rows = static_cast<int64_t>(data.row_offsets.size()) - 1;
    for (int64_t r = 0; height * width > 1 && r < grid_rows; ++r) {
      const int64_t rows = std::min(height, data.out - r * height);
      for (int64_t p = data.row_offsets[r]; p < data.row_offsets[r + 1]; ++p) {
        data.nonzero_count += rows * std::min(width, data.in - data.columns[p] * width);
      }
    }
  }
  const int64_t header[] = {static_cast<int64_t>(data.kind),
                            data.out,
                            data.in,
                            data.block_out,
                            data.block_in,
                            data.n,
                            data.m,
                            static_cast<int64_t>(data.columns.size())};
  uint64_t hash = XXH3_64bits(header, sizeof(header));
  hash = XXH3_64bits_withSeed(data.row_offsets.data(), data.row_offsets.size() * sizeof(int64_t),
                              hash);
  data.fingerprint =
      XXH3_64bits_withSeed(data.columns.data(), data.columns.size() * sizeof(int32_t), hash);
  data_ = std::make_shared<const Data>(std::move(data));
}

SparseLayout SparseLayout::Dense(int64_t out, int64_t in, int64_t row_pitch) {
  CHECK(out >= 0 && in >= 0) << "shape [" << out << ", " << in << "]";
  CHECK(row_pitch == 0 || row_pitch >= in) << "rows of " << in << " at a pitch of " << row_pitch;
  Data data;
  data.out = out;
  data.in = in;
  data.row_pitch = row_pitch == 0 ? in : row_pitch;
  return SparseLayout(std::move(data));
}

StatusOr<SparseLayout> SparseLayout::Unstructured(int64_t out, int64_t in,
                                                  std::vector<int64_t> row_offsets,
                                                  std::vector<int32_t> columns) {
  RETURN_IF_ERROR(CheckShape(out, in, 1, 1));
  RETURN_IF_ERROR(CheckRows(out, in, row_offsets, columns, "row"));
  Data data;
  data.kind = LayoutKind::kUnstructured;
  data.out = out;
  data.in = in;
  data.row_offsets = std::move(row_offsets);
  data.columns = std::move(columns);
  return SparseLayout(std::move(data));
}

StatusOr<SparseLayout> SparseLayout::Blocked(int64_t out, int64_t in, int block_out, int block_in,
                                             std::vector<int64_t> row_offsets,
                                             std::vector<int32_t> columns) {
  RETURN_IF_ERROR(CheckShape(out, in, block_out, block_in));
  RETURN_IF_ERROR(
      CheckRows(CeilDiv(out, block_out), CeilDiv(in, block_in), row_offsets, columns, "block row"));
  Data data;
  data.kind = LayoutKind::kBlocked;
  data.out = out;
  data.in = in;
  data.block_out = block_out;
  data.block_in = block_in;
  data.row_offsets = std::move(row_offsets);
  data.columns = std::move(columns);
  return SparseLayout(std::move(data));
}

StatusOr<SparseLayout> SparseLayout::NM(int64_t out, int64_t in, int n, int m,
                                        std::vector<int32_t> columns) {
  RETURN_IF_ERROR(CheckShape(out, in, 1, 1));
  if (n < 1 || m < n || in % m != 0) {
    return Invalid(n, ":", m, " of rows of ", in, "; 1 <= n <= m and m divides the row");
  }
  const int64_t a_row = in / m * n;
  if (static_cast<int64_t>(columns.size()) != out * a_row) {
    return Invalid(columns.size(), " columns; ", n, ":", m, " of [", out, ", ", in, "] has ",
                   out * a_row);
  }
  Data data;
  data.kind = LayoutKind::kNM;
  data.out = out;
  data.in = in;
  data.n = n;
  data.m = m;
  for (int64_t r = 0; r <= out; ++r) data.row_offsets.push_back(r * a_row);
  RETURN_IF_ERROR(CheckRows(out, in, data.row_offsets, columns, "row"));
  for (size_t p = 0; p < columns.size(); ++p) {
    const int64_t row = static_cast<int64_t>(p) / a_row,
                  group = static_cast<int64_t>(p) % a_row / n;
    if (columns[p] / m != group) {
      return Invalid("row ", row, ": column ", columns[p], " where one of [", group * m, ", ",
                     (group + 1) * m, ") belongs; each group of ", m, " keeps ", n);
    }
  }
  data.columns = std::move(columns);
  return SparseLayout(std::move(data));
}

double SparseLayout::sparsity() const {
  if (logical_count() == 0) return 0.0;
  return 1.0 - static_cast<double>(nonzero_count()) / static_cast<double>(logical_count());
}

int64_t SparseLayout::grid_rows() const { return CeilDiv(out(), block_out()); }
int64_t SparseLayout::grid_cols() const { return CeilDiv(in(), block_in()); }

SparseLayout::Transposed SparseLayout::Transpose() const {
  Transposed result;
  if (kind() == LayoutKind::kDense) return result;
  // A counting sort by column: rows come out in increasing order.
  result.column_offsets.assign(grid_cols() + 1, 0);
  result.rows.resize(columns().size());
  result.slots.resize(columns().size());
  for (int32_t column : columns()) ++result.column_offsets[column + 1];
  for (int64_t c = 0; c < grid_cols(); ++c) {
    result.column_offsets[c + 1] += result.column_offsets[c];
  }
  std::vector<int64_t> next(result.column_offsets.begin(), result.column_offsets.end() - 1);
  for (int64_t r = 0; r < grid_rows(); ++r) {
    for (int64_t p = row_offsets()[r]; p < row_offsets()[r + 1]; ++p) {
      const int64_t q = next[columns()[p]]++;
      result.rows[q] = static_cast<int32_t>(r);
      result.slots[q] = p;
    }
  }
  return result;
}

std::vector<int64_t> SparseLayout::LogicalIndices() const {
  constexpr int64_t kPiece = 1 << 16;
  std::vector<int64_t> indices(stored_count());
#pragma omp parallel for
  for (int64_t first = 0; first < stored_count(); first += kPiece) {
    CellsOfSlots(*this, first, std::min(kPiece, stored_count() - first), &indices[first]);
  }
  return indices;
}

bool SparseLayout::operator==(const SparseLayout& other) const {
  if (data_ == other.data_) return true;
  const Data &a = *data_, &b = *other.data_;
  return a.fingerprint == b.fingerprint && a.kind == b.kind && a.out == b.out && a.in == b.in &&
         a.block_out == b.block_out && a.block_in == b.block_in && a.n == b.n && a.m == b.m &&
         a.row_pitch == b.row_pitch && a.row_offsets == b.row_offsets && a.columns == b.columns;
}

std::vector<int64_t> IndexRemap(const SparseLayout& from, const SparseLayout& to) {
  CHECK(from.out() == to.out() && from.in() == to.in())
      << "remap from [" << from.out() << ", " << from.in() << "] to [" << to.out() << ", "
      << to.in() << "]";
  std::vector<int64_t> remap(to.stored_count(), -1);
#pragma omp parallel
  {
    // The slots of one row of `from` by column; only touched entries are cleared, so that the cost
    // follows the stored cells and not the logical ones.
    std::vector<int64_t> slot_of_column(from.in(), -1);
#pragma omp for
    for (int64_t i = 0; i < from.out(); ++i) {
      ForEachStoredRun(from, i, [&](int64_t slot, int64_t column, int64_t count) {
        std::iota(&slot_of_column[column], &slot_of_column[column] + count, slot);
      });
      ForEachStoredRun(to, i, [&](int64_t slot, int64_t column, int64_t count) {
        std::copy_n(&slot_of_column[column], count, &remap[slot]);
      });
      ForEachStoredRun(from, i, [&](int64_t, int64_t column, int64_t count) {
        std::fill_n(&slot_of_column[column], count, -1);
      });
    }
  }
  return remap;
}

}  // namespace filigree

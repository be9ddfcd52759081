#include "kernels/base/dtype.h"

#include <array>
#include <utility>

#include "kernels/base/check.h"

namespace filigree {
namespace {

struct DTypeRow {
  DType dtype;
  std::string_view name;
  size_t bytes;
};

constexpr std::array<DTypeRow, 8> kRows = {{{DType::kF64, "F64", 8},
                                            {DType::kF32, "F32", 4},
                                            {DType::kBF16, "BF16", 2},
                                            {DType::kI64, "I64", 8},
                                            {DType::kI32, "I32", 4},
                                            {DType::kU32, "U32", 4},
                                            {DType::kU16, "U16", 2},
                                            {DType::kU8, "U8", 1}}};

const DTypeRow& RowOf(DType dtype) {
  const size_t index = static_cast<size_t>(dtype);
  CHECK_LT(index, kRows.size());
  return kRows[index];
}

}  // namespace

size_t SizeOf(DType dtype) { return RowOf(dtype).bytes; }

std::string_view NameOf(DType dtype) { return RowOf(dtype).name; }

bool DTypeFromName(std::string_view name, DType* dtype) {
  for (const DTypeRow& row : kRows) {
    if (row.name == name) {
      *dtype = row.dtype;
      return true;
    }
  }
  return false;
}

}  // namespace filigree

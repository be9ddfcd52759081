#include <vector>

#include "tests/gpu/gpu_testing.h"

namespace filigree {
namespace {

// A piece of a matrix that begins and ends inside rows.
struct PieceCase {
  int64_t rows, columns, row_extent, column_extent, first, count;
};
constexpr PieceCase kCases[] = {{40, 24, 1, 1, 0, 960},       {40, 24, 8, 4, 0, 960},
                                {300, 70, 4, 10, 513, 13001}, {1000, 1024, 64, 128, 256, 1000000},
                                {1, 777, 1, 1, 0, 777},       {2048, 2736, 1, 1, 2048, 5000000}};

class GpuPruningTest : public GpuTest {};

TEST_F(GpuPruningTest, SumsFollowTheReference) {
  for (const PieceCase& c : kCases) {
    Mirror values = Mirror::Random(1, c.count, DType::kF32, 1, 0.02);
    Mirror grads = Mirror::Random(1, c.count, DType::kF32, 2, 1e-3);
    const int64_t row_units = c.rows / c.row_extent, column_units = c.columns / c.column_extent;
    Mirror rows = Mirror::Of(1, 3 * row_units, DType::kF64, std::vector<double>(3 * row_units));
    Mirror columns =
        Mirror::Of(1, 3 * column_units, DType::kF64, std::vector<double>(3 * column_units));
    UnitSumsArgs args;
    args.units = {.first = c.first,
                  .columns = c.columns,
                  .row_extent = c.row_extent,
                  .column_extent = c.column_extent};
    args.values = values.gpu_flat();
    args.grads = grads.gpu_flat();
    args.row_sums = rows.gpu_flat();
    args.column_sums = columns.gpu_flat();
    gpu().UnitSums(args, stream());
    args.values = values.cpu_flat();
    args.grads = grads.cpu_flat();
    args.row_sums = rows.cpu_flat();
    args.column_sums = columns.cpu_flat();
    cpu().UnitSums(args, cpu_stream());
    ExpectParity(rows, "rows of " + std::to_string(c.columns), 1e-5);
    ExpectParity(columns, "columns of " + std::to_string(c.columns), 1e-5);
  }
}

TEST_F(GpuPruningTest, ScalingIsExact) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const PieceCase& c : kCases) {
      Mirror values = Mirror::Random(1, c.count, dtype, 1);
      std::vector<float> row_factors(c.rows / c.row_extent, 1.0f);
      std::vector<float> column_factors(c.columns / c.column_extent, 1.0f);
      for (size_t i = 0; i < row_factors.size(); i += 3) row_factors[i] = 0.0f;
      for (size_t i = 1; i < column_factors.size(); i += 4) column_factors[i] = 0.5f;
      const auto upload = [&](const std::vector<float>& host, DeviceBuffer* buffer) {
        const auto count = static_cast<int64_t>(host.size());
        *buffer = device().Allocate(host.size() * sizeof(float), "test");
        device().CopyAsync(buffer->View(DType::kF32, count),
                           ConstTensorView(host.data(), DType::kF32, {count}), stream());
        return buffer->View(DType::kF32, count);
      };
      DeviceBuffer row_buffer, column_buffer;
      ScaleUnitsArgs args;
      args.units = {.first = c.first,
                    .columns = c.columns,
                    .row_extent = c.row_extent,
                    .column_extent = c.column_extent};
      args.values = values.gpu_flat();
      args.row_factors = upload(row_factors, &row_buffer);
      args.column_factors = upload(column_factors, &column_buffer);
      gpu().ScaleUnits(args, stream());
      stream().Synchronize();
      args.values = values.cpu_flat();
      args.row_factors = ConstTensorView(row_factors.data(), DType::kF32,
                                         {static_cast<int64_t>(row_factors.size())});
      args.column_factors = ConstTensorView(column_factors.data(), DType::kF32,
                                            {static_cast<int64_t>(column_factors.size())});
      cpu().ScaleUnits(args, cpu_stream());
      ExpectEqual(values, std::string(NameOf(dtype)) + " scaled");
    }
  }
}

}  // namespace
}  // namespace filigree

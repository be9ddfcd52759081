#include <vector>

#include "kernels/base/rng.h"
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

TEST_F(GpuPruningTest, ColumnsTakeOverAsOnTheCpu) {
  struct Case {
    int64_t rows, columns, pitch;
    int terms, rest;
  };
  for (const Case& c : {Case{37, 50, 50, 3, 40}, Case{1024, 2736, 2736, 1, 127},
                        Case{70000, 8, 8, 2, 5}, Case{300, 1024, 1032, 64, 900}}) {
    std::vector<float> weight(c.rows * c.pitch);
    for (size_t i = 0; i < weight.size(); ++i) weight[i] = RandomNormal(3, RngStream("w"), i);
    std::vector<int32_t> columns;  // those that leave, then those that stay
    for (int i = 0; i < c.terms + c.rest; ++i) {
      columns.push_back(static_cast<int32_t>((i * 7 + 3) % c.columns));
    }
    std::vector<double> factors(static_cast<size_t>(c.terms) * c.rest);
    for (size_t i = 0; i < factors.size(); ++i) factors[i] = RandomNormal(4, RngStream("f"), i);
    const auto add = [&](Backend& backend, Stream& on) {
      Device& there = backend.device();
      const auto upload = [&](const auto& host, DType dtype) {
        const auto count = static_cast<int64_t>(host.size());
        DeviceBuffer buffer = there.Allocate(host.size() * sizeof(host[0]), "test");
        there.CopyAsync(buffer.View(dtype, count), ConstTensorView(host.data(), dtype, {count}),
                        on);
        return buffer;
      };
      const DeviceBuffer w = upload(weight, DType::kF32), i = upload(columns, DType::kI32);
      const DeviceBuffer f = upload(factors, DType::kF64);
      const auto cells = static_cast<int64_t>(weight.size());
      const TensorView indices = i.View(DType::kI32, c.terms + c.rest);
      backend.AddColumns({.weight = w.View(DType::kF32, cells).Reshape({c.rows, c.pitch}),
                          .gone = indices.Range(0, c.terms),
                          .rest = indices.Range(c.terms, c.rest),
                          .factors = f.View(DType::kF64, c.terms * c.rest)},
                         on);
      std::vector<float> found(weight.size());
      there.CopyAsync(TensorView(found.data(), DType::kF32, {cells}), w.View(DType::kF32, cells),
                      on);
      on.Synchronize();
      return found;
    };
    const std::vector<float> ours = add(gpu(), stream());
    EXPECT_TRUE(ours == add(cpu(), cpu_stream())) << c.rows << " rows, " << c.terms << " terms";
    EXPECT_FALSE(ours == weight);
  }
}

}  // namespace
}  // namespace filigree

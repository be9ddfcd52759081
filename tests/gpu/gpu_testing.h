// What the tests of the CUDA backend share.
//
// The reference is the CPU backend in double precision, on inputs rounded to what the GPU holds, so
// it is free of rounding of its own. The yardstick is a naive version of the same precision: the
// reference rounded once to the output's dtype. An operation passes if its error is at most twice
// that plus a floor, in the root mean square over all elements, and no single element is far off.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/cpu_device.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_device.h"

namespace filigree {

// A host array on a device.
template <typename T>
DeviceBuffer Upload(const std::vector<T>& host, Device& device, Stream& stream) {
  const auto count = static_cast<int64_t>(host.size());
  DeviceBuffer buffer = device.Allocate(std::max<size_t>(host.size(), 1) * sizeof(T), "test");
  if (count > 0) {
    device.CopyAsync(buffer.View(DTypeOf<T>::value, count),
                     ConstTensorView(host.data(), DTypeOf<T>::value, {count}), stream);
    stream.Synchronize();
  }
  return buffer;
}

class GpuTest : public ::testing::Test {
 protected:
  // Skips the test where no GPU answers.
  void SetUp() override;

  // One for all tests of the process.
  static CudaDevice& device();
  static CudaBackend& gpu();
  static Stream& stream();
  // The reference.
  static CpuBackend& cpu();
  static Stream& cpu_stream();
};

// The same matrix on both sides: F64 for the reference, `dtype` on the GPU. Rows lie `gap` elements
// further apart than they are long; on the GPU the gaps hold a pattern that nobody may change.
class Mirror {
 public:
  // Standard normal times `scale`, rounded to `dtype`; each `seed` draws others.
  static Mirror Random(int64_t rows, int64_t cols, DType dtype, uint64_t seed, double scale = 1,
                       int64_t gap = 0);
  // Small integers (-2 .. 2), whose sums are exact in every precision and order.
  static Mirror Integers(int64_t rows, int64_t cols, DType dtype, uint64_t seed, int64_t gap = 0);
  // NaN on both sides: an output that must be written whole.
  static Mirror Output(int64_t rows, int64_t cols, DType dtype, int64_t gap = 0);
  // Given values (I32 keeps I32 on both sides).
  static Mirror Of(int64_t rows, int64_t cols, DType dtype, const std::vector<double>& values,
                   int64_t gap = 0);
  Mirror(Mirror&&) = default;

  // [rows, cols] views for the two backends; `cpu` is F64 (or I32).
  TensorView cpu();
  TensorView gpu() const;
  // The same as vectors; only without a gap.
  TensorView cpu_flat() { return cpu().Flat(); }
  TensorView gpu_flat() const { return gpu().Flat(); }

  // What the GPU holds now, row by row.
  std::vector<double> Download() const;
  // What the reference holds now.
  std::vector<double> Reference() const;
  bool GapsAreIntact() const;
  DType dtype() const { return dtype_; }

 private:
  Mirror(int64_t rows, int64_t cols, DType dtype, int64_t gap);
  void Upload();
  std::vector<std::byte> DownloadBytes() const;

  int64_t rows_, cols_, gap_;
  DType dtype_;
  std::vector<double> host_;     // without gaps
  std::vector<int32_t> indices_;  // instead, for I32
  DeviceBuffer buffer_;
};

// The GPU's `out` against the reference's. `floor` is relative to the root mean square of the
// reference: what reordered sums of this operation may add to a correctly rounded result.
void ExpectParity(Mirror& out, const std::string& what, double floor = 1e-4);
// `sums`, on the GPU the column sums of `of` as the GPU has it (on top of the reference's sums if
// `added`), to F32's precision.
void ExpectColumnSums(Mirror& sums, const Mirror& of, int64_t rows, int64_t cols, bool added,
                      const std::string& what);
// Bit for bit (integer-valued inputs).
void ExpectEqual(Mirror& out, const std::string& what);

}  // namespace filigree

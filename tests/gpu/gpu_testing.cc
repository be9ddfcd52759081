#include "tests/gpu/gpu_testing.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "kernels/base/dtype.h"
#include "kernels/base/rng.h"

namespace filigree {
namespace {

constexpr uint8_t kGapByte = 0x5A;

template <typename T>
void Put(std::byte* bytes, int64_t index, T value) {
  reinterpret_cast<T*>(bytes)[index] = value;
}

void Store(std::byte* bytes, DType dtype, int64_t index, double value) {
  switch (dtype) {
    case DType::kF32:
      return Put(bytes, index, static_cast<float>(value));
    case DType::kF64:
      return Put(bytes, index, value);
    case DType::kBF16:
      return Put(bytes, index, BFloat16(static_cast<float>(value)));
    case DType::kI32:
      return Put(bytes, index, static_cast<int32_t>(value));
    default:
      CHECK(false) << NameOf(dtype);
  }
}

double Fetch(const std::byte* bytes, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::kF32:
      return reinterpret_cast<const float*>(bytes)[index];
    case DType::kF64:
      return reinterpret_cast<const double*>(bytes)[index];
    case DType::kBF16:
      return static_cast<float>(reinterpret_cast<const BFloat16*>(bytes)[index]);
    case DType::kI32:
      return reinterpret_cast<const int32_t*>(bytes)[index];
    default:
      CHECK(false) << NameOf(dtype);
  }
}

double Rounded(double value, DType dtype) {
  std::byte bytes[8];
  Store(bytes, dtype, 0, value);
  return Fetch(bytes, dtype, 0);
}

CudaDevice& TestDevice() {
  static CudaDevice device(0);
  return device;
}

double RootMeanSquare(double sum, size_t count) {
  return count == 0 ? 0 : std::sqrt(sum / static_cast<double>(count));
}

}  // namespace

CudaDevice& GpuTest::device() { return TestDevice(); }
CudaBackend& GpuTest::gpu() {
  static CudaBackend backend(device());
  return backend;
}
Stream& GpuTest::stream() {
  static std::unique_ptr<Stream> stream = device().NewStream();
  return *stream;
}
CpuBackend& GpuTest::cpu() {
  static CpuDevice device(DType::kF64);
  static CpuBackend backend(device);
  return backend;
}
Stream& GpuTest::cpu_stream() {
  static std::unique_ptr<Stream> stream = cpu().device().NewStream();
  return *stream;
}

void GpuTest::SetUp() {
  if (CudaDeviceCount() == 0) GTEST_SKIP() << "no GPU answers";
  device();
}

Mirror::Mirror(int64_t rows, int64_t cols, DType dtype, int64_t gap)
    : rows_(rows), cols_(cols), gap_(gap), dtype_(dtype), host_(rows * cols) {}

Mirror Mirror::Random(int64_t rows, int64_t cols, DType dtype, uint64_t seed, double scale,
                      int64_t gap) {
  Mirror mirror(rows, cols, dtype, gap);
  for (size_t i = 0; i < mirror.host_.size(); ++i) {
    mirror.host_[i] = Rounded(scale * RandomNormal(seed, RngStream("gpu test"), i), dtype);
  }
  mirror.Upload();
  return mirror;
}

Mirror Mirror::Integers(int64_t rows, int64_t cols, DType dtype, uint64_t seed, int64_t gap) {
  Mirror mirror = Random(rows, cols, dtype, seed, 1, gap);
  for (double& value : mirror.host_) value = std::clamp(std::round(value), -2.0, 2.0);
  mirror.Upload();
  return mirror;
}

Mirror Mirror::Output(int64_t rows, int64_t cols, DType dtype, int64_t gap) {
  Mirror mirror(rows, cols, dtype, gap);
  std::fill(mirror.host_.begin(), mirror.host_.end(), std::numeric_limits<double>::quiet_NaN());
  mirror.Upload();
  return mirror;
}

Mirror Mirror::Of(int64_t rows, int64_t cols, DType dtype, const std::vector<double>& values,
                  int64_t gap) {
  Mirror mirror(rows, cols, dtype, gap);
  CHECK_EQ(values.size(), mirror.host_.size());
  for (size_t i = 0; i < values.size(); ++i) mirror.host_[i] = Rounded(values[i], dtype);
  mirror.Upload();
  return mirror;
}

void Mirror::Upload() {
  const int64_t stride = cols_ + gap_;
  std::vector<std::byte> bytes(rows_ * stride * SizeOf(dtype_), std::byte{kGapByte});
  for (int64_t i = 0; i < rows_; ++i) {
    for (int64_t j = 0; j < cols_; ++j) {
      Store(bytes.data(), dtype_, i * stride + j, host_[i * cols_ + j]);
    }
  }
  if (dtype_ == DType::kI32) indices_.assign(host_.begin(), host_.end());
  if (bytes.empty()) return;
  CudaDevice& device = TestDevice();
  if (buffer_.data() == nullptr) buffer_ = device.Allocate(bytes.size(), "test");
  const auto count = static_cast<int64_t>(bytes.size());
  const auto stream = device.NewStream();
  device.CopyAsync(buffer_.View(DType::kU8, count),
                   ConstTensorView(bytes.data(), DType::kU8, {count}), *stream);
  stream->Synchronize();
}

std::vector<std::byte> Mirror::DownloadBytes() const {
  std::vector<std::byte> bytes(buffer_.bytes());
  if (bytes.empty()) return bytes;
  const auto count = static_cast<int64_t>(bytes.size());
  const auto stream = TestDevice().NewStream();
  TestDevice().CopyAsync(TensorView(bytes.data(), DType::kU8, {count}),
                         buffer_.View(DType::kU8, count), *stream);
  stream->Synchronize();
  return bytes;
}

std::vector<double> Mirror::Download() const {
  const std::vector<std::byte> bytes = DownloadBytes();
  std::vector<double> values;
  for (int64_t i = 0; i < rows_; ++i) {
    for (int64_t j = 0; j < cols_; ++j) {
      values.push_back(Fetch(bytes.data(), dtype_, i * (cols_ + gap_) + j));
    }
  }
  return values;
}

bool Mirror::GapsAreIntact() const {
  const std::vector<std::byte> bytes = DownloadBytes();
  const auto element = static_cast<int64_t>(SizeOf(dtype_));
  for (int64_t i = 0; i < rows_; ++i) {
    const auto gap = bytes.begin() + (i * (cols_ + gap_) + cols_) * element;
    if (!std::all_of(gap, gap + gap_ * element,
                     [](std::byte b) { return b == std::byte{kGapByte}; })) {
      return false;
    }
  }
  return true;
}

TensorView Mirror::cpu() {
  void* data = dtype_ == DType::kI32 ? static_cast<void*>(indices_.data()) : host_.data();
  return TensorView(data, dtype_ == DType::kI32 ? DType::kI32 : DType::kF64, {rows_, cols_});
}

TensorView Mirror::gpu() const {
  return TensorView::Matrix(buffer_.data(), dtype_, rows_, cols_, cols_ + gap_);
}

std::vector<double> Mirror::Reference() const {
  if (dtype_ == DType::kI32) return std::vector<double>(indices_.begin(), indices_.end());
  return host_;
}

void ExpectParity(Mirror& out, const std::string& what, double floor) {
  const std::vector<double> found = out.Download(), expected = out.Reference();
  double error = 0, naive = 0, size = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double rounded = Rounded(expected[i], out.dtype());
    error += (found[i] - expected[i]) * (found[i] - expected[i]);
    naive += (rounded - expected[i]) * (rounded - expected[i]);
    size += expected[i] * expected[i];
  }
  const double rms = RootMeanSquare(size, expected.size());
  const double limit = 2 * RootMeanSquare(naive, expected.size()) + floor * rms;
  // Negated, so that NaN fails.
  if (!(RootMeanSquare(error, expected.size()) <= limit)) {
    ADD_FAILURE() << what << ": error " << RootMeanSquare(error, expected.size()) << ", allowed "
                  << limit << ", of values of " << rms;
  }
  const double ulp = out.dtype() == DType::kBF16 ? 1.0 / 256 : 1.0 / (1 << 23);
  for (size_t i = 0; i < expected.size(); ++i) {
    const double far = 2 * ulp * std::abs(expected[i]) + 30 * (floor + ulp) * rms;
    if (!(std::abs(found[i] - expected[i]) <= far)) {
      ADD_FAILURE() << what << ": element " << i << " is " << found[i] << ", not " << expected[i];
      break;
    }
  }
  EXPECT_TRUE(out.GapsAreIntact()) << what << ": wrote between its rows";
}

void ExpectColumnSums(Mirror& sums, const Mirror& of, int64_t rows, int64_t cols, bool added,
                      const std::string& what) {
  Mirror written = Mirror::Of(rows, cols, of.dtype(), of.Download());
  CpuDevice device(DType::kF64);
  CpuBackend backend(device);
  const auto stream = device.NewStream();
  backend.ColumnSum({.in = written.cpu(), .out = sums.cpu_flat(), .accumulate = added}, *stream);
  ExpectParity(sums, what, 1e-5);
}

void ExpectEqual(Mirror& out, const std::string& what) {
  const std::vector<double> found = out.Download(), expected = out.Reference();
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_EQ(found[i], expected[i]) << what << ": element " << i;
  }
  EXPECT_TRUE(out.GapsAreIntact()) << what << ": wrote between its rows";
}

}  // namespace filigree

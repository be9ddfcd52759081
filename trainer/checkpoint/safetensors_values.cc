#include <bit>
#include <cstring>

#include "trainer/checkpoint/safetensors.h"

namespace filigree {
namespace {

float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t fraction = half & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (fraction << 13));
  if (exponent != 0) {
    return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
  }
  const float subnormal = static_cast<float>(fraction) * 0x1p-24f;
  return sign != 0 ? -subnormal : subnormal;
}

template <typename Stored, typename Convert>
std::vector<float> ConvertAll(const TensorEntry& tensor, Convert convert) {
  std::vector<float> values(static_cast<size_t>(tensor.count()));
  const std::byte* next = tensor.bytes.data();
  for (float& value : values) {
    Stored stored;
    std::memcpy(&stored, next, sizeof(Stored));
    value = convert(stored);
    next += sizeof(Stored);
  }
  return values;
}

}  // namespace

StatusOr<std::vector<float>> ReadFloats(const TensorEntry& tensor) {
  if (tensor.dtype == "F32") return ConvertAll<float>(tensor, [](float x) { return x; });
  if (tensor.dtype == "BF16") {
    return ConvertAll<BFloat16>(tensor, [](BFloat16 x) { return static_cast<float>(x); });
  }
  if (tensor.dtype == "F16") return ConvertAll<uint16_t>(tensor, HalfToFloat);
  if (tensor.dtype == "F64") {
    return ConvertAll<double>(tensor, [](double x) { return static_cast<float>(x); });
  }
  return InvalidInput(tensor.file + ": tensor \"" + tensor.name + "\" is " + tensor.dtype +
                      "; weights are read from F32, BF16, F16 and F64");
}

template <typename T>
StatusOr<std::vector<T>> ReadElements(const TensorEntry& tensor) {
  if (tensor.dtype != NameOf(DTypeOf<T>::value)) {
    return InvalidInput(tensor.file + ": tensor \"" + tensor.name + "\" is " + tensor.dtype +
                        ", expected " + std::string(NameOf(DTypeOf<T>::value)));
  }
  std::vector<T> elements(static_cast<size_t>(tensor.count()));
  if (!elements.empty()) {
    std::memcpy(elements.data(), tensor.bytes.data(), tensor.bytes.size());
  }
  return elements;
}

template StatusOr<std::vector<float>> ReadElements(const TensorEntry&);
template StatusOr<std::vector<double>> ReadElements(const TensorEntry&);
template StatusOr<std::vector<int64_t>> ReadElements(const TensorEntry&);
template StatusOr<std::vector<int32_t>> ReadElements(const TensorEntry&);
template StatusOr<std::vector<uint8_t>> ReadElements(const TensorEntry&);

}  // namespace filigree

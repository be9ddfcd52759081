// A reader of exported directories written from the safetensors specification alone, so that tests
// of our writer do not lean on our reader.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "tests/unit/checkpoint_testing.h"

namespace filigree {

struct PlainTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;

  template <typename T>
  std::vector<T> As() const {
    std::vector<T> values(bytes.size() / sizeof(T));
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }
};

inline std::string FileText(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  EXPECT_TRUE(stream.good()) << path;
  return std::string(std::istreambuf_iterator<char>(stream), {});
}

inline nlohmann::json JsonOf(const std::string& path) {
  return nlohmann::json::parse(FileText(path));
}

inline nlohmann::json HeaderOf(const std::string& path) {
  const std::string text = FileText(path);
  uint64_t length = 0;
  std::memcpy(&length, text.data(), sizeof(length));
  EXPECT_EQ(length % 8, 0u);
  return nlohmann::json::parse(text.substr(8, length));
}

// Adds a file's tensors to `tensors`; offsets must follow one another from 0 to the end.
inline void ReadPlainTensors(const std::string& path, std::map<std::string, PlainTensor>* tensors) {
  const std::string text = FileText(path);
  uint64_t length = 0;
  std::memcpy(&length, text.data(), sizeof(length));
  nlohmann::json header = HeaderOf(path);
  header.erase("__metadata__");
  std::map<int64_t, int64_t> ranges;
  for (const auto& [name, entry] : header.items()) {
    const int64_t begin = entry["data_offsets"][0], end = entry["data_offsets"][1];
    ranges[begin] = end;
    EXPECT_EQ(tensors->count(name), 0u) << name;
    (*tensors)[name] = {
        entry["dtype"], entry["shape"],
        text.substr(8 + length + static_cast<size_t>(begin), static_cast<size_t>(end - begin))};
  }
  int64_t next = 0;
  for (const auto& [begin, end] : ranges) {
    EXPECT_EQ(begin, next) << path;
    next = end;
  }
  EXPECT_EQ(8 + length + static_cast<size_t>(next), text.size()) << path;
}

inline std::map<std::string, PlainTensor> ReadPlainTensors(const std::string& path) {
  std::map<std::string, PlainTensor> tensors;
  ReadPlainTensors(path, &tensors);
  return tensors;
}

}  // namespace filigree

// What the tests of data/ share: a scratch directory, and small files in it.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "data/token_shard.h"

namespace filigree {

// A test with an empty directory of its own, removed afterwards.
class DirectoryTest : public ::testing::Test {
 protected:
  DirectoryTest() {
    char pattern[] = "/tmp/filigree_data_test_XXXXXX";
    directory_ = mkdtemp(pattern);
  }
  ~DirectoryTest() override { std::filesystem::remove_all(directory_); }

  std::string Path(const std::string& name) const { return directory_ + "/" + name; }

  // Writes a file, and the directories above it; returns its path.
  std::string Write(const std::string& name, std::string_view bytes) const {
    const std::string path = Path(name);
    std::filesystem::create_directories(std::filesystem::path(path).parent_path());
    std::ofstream(path, std::ios::binary).write(bytes.data(), bytes.size());
    return path;
  }

  // Writes tokens as llm.c shards PREFIX_000000.bin...
  void WriteShards(const std::string& prefix, const std::vector<int32_t>& tokens,
                   int64_t shard_tokens = 1000, DType dtype = DType::kU16) const {
    ShardWriter writer({Path(prefix), dtype, shard_tokens});
    ASSERT_TRUE(writer.Write(tokens).ok());
    ASSERT_TRUE(writer.Finish().ok());
  }

  std::string directory_;
};

// The little-endian bytes of values of one type.
template <typename T>
std::string Packed(const std::vector<T>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

inline std::vector<int32_t> Iota(int32_t first, int64_t count) {
  std::vector<int32_t> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = first + static_cast<int32_t>(i);
  return values;
}

}  // namespace filigree

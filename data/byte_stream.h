// Files read as a stream of bytes, decompressed where their first bytes say gzip or zstd.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/base/status.h"

namespace filigree {

class ByteStream {
 public:
  // InvalidInput: the file cannot be opened.
  static StatusOr<std::unique_ptr<ByteStream>> Open(const std::string& path);
  virtual ~ByteStream() = default;

  // Appends everything that is left.
  Status ReadAll(std::string* out);
  // The next line without its '\n' (a '\r' before it stays); false at the end.
  StatusOr<bool> ReadLine(std::string* line);
  // Bytes of the file on disk consumed so far.
  virtual int64_t input_bytes() const = 0;

 protected:
  explicit ByteStream(std::string path) : path_(std::move(path)) {}
  // At most `size` decompressed bytes into `out`; 0 at the end. InvalidInput: damaged or truncated.
  virtual StatusOr<size_t> Read(char* out, size_t size) = 0;
  Status Damaged(const std::string& reason) const;

 private:
  StatusOr<bool> Fill();

  std::string path_;
  std::vector<char> buffer_;
  size_t begin_ = 0, end_ = 0;  // the unread part of buffer_
};

}  // namespace filigree

// Files of the data folder: read-only maps, globs, atomic writes and checksums.
//
// A file that cannot be opened or is not what it should be is the user's (InvalidInput); a write or
// a read that fails half way is the machine's (MachineError). Every message begins with the path.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"

namespace filigree {

// A whole file mapped read-only. Move-only; unmapped by the destructor. An empty file has size 0.
class MappedFile {
 public:
  static StatusOr<MappedFile> Open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  const std::byte* data() const { return data_; }
  int64_t size() const { return size_; }
  std::string_view text() const {
    return {reinterpret_cast<const char*>(data_), static_cast<size_t>(size_)};
  }

 private:
  MappedFile() = default;
  const std::byte* data_ = nullptr;
  int64_t size_ = 0;
};

// The paths that match a shell pattern (*, ?, [..], {a,b}, ~), sorted bytewise; empty where none
// does.
std::vector<std::string> ExpandGlob(const std::string& pattern);

// The whole file as bytes.
StatusOr<std::string> ReadFile(const std::string& path);

// Writes `bytes` under a temporary name in the same directory, flushes to the disk and renames: the
// path holds the old content or the new, never a part.
Status WriteFileAtomically(const std::string& path, std::string_view bytes);

// Flushes the directory entry itself, so that a rename inside it survives a power cut.
Status SyncDirectory(const std::string& path);

// XXH64 with seed 0, and its usual spelling: 16 lowercase hexadecimal digits (as `xxhsum -H1`).
uint64_t Hash64(std::string_view bytes, uint64_t seed = 0);
std::string HashHex(uint64_t hash);

}  // namespace filigree

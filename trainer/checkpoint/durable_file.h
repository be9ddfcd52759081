// Writing that survives a power cut: files that are hashed while they are written and flushed when
// they are closed, and directories that appear whole or not at all.
//
// A path that cannot be written (permission, missing, read-only) is the user's (InvalidInput); a
// disk that is full or fails is the machine's (MachineError). Every message begins with the path.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/base/status.h"

typedef struct XXH64_state_s XXH64_state_t;

namespace filigree {

// A new file, written from front to back. Move-only.
class DurableFile {
 public:
  // Creates `path`, or empties the file that is there.
  static StatusOr<DurableFile> Create(const std::string& path);
  DurableFile(DurableFile&& other) noexcept;
  DurableFile& operator=(DurableFile&& other) noexcept;
  ~DurableFile();

  Status Append(const void* data, size_t bytes);
  Status Append(std::string_view bytes) { return Append(bytes.data(), bytes.size()); }
  // Flushes to the disk. Nothing can be appended afterwards.
  Status Close();

  const std::string& path() const { return path_; }
  int64_t size() const { return size_; }
  // XXH64 (seed 0) of everything appended so far.
  uint64_t hash() const;

 private:
  DurableFile() = default;

  std::string path_;
  int file_ = -1;
  int64_t size_ = 0;
  XXH64_state_t* hash_state_ = nullptr;
};

// A directory prepared under a hidden name beside its final one (".NAME.partial" for NAME) and
// renamed when it is complete. Move-only; a destructor without Commit removes the hidden one.
class StagedDirectory {
 public:
  // Makes the hidden directory, its parents where they are missing, and replaces a left-over one.
  static StatusOr<StagedDirectory> Begin(const std::string& final_path);
  StagedDirectory(StagedDirectory&& other) noexcept;
  StagedDirectory& operator=(StagedDirectory&& other) noexcept;
  ~StagedDirectory();

  // Where to write.
  const std::string& path() const { return path_; }
  const std::string& final_path() const { return final_path_; }
  // Flushes the directory and gives it its final name; whatever had that name is removed. The files
  // in it must have been closed.
  Status Commit();

 private:
  StagedDirectory() = default;

  std::string path_, final_path_;
};

// Removes a directory that others may be looking for: first its name, then its content, so that a
// crash half way leaves no incomplete directory under the name.
Status RemoveDirectoryWhole(const std::string& path);

}  // namespace filigree

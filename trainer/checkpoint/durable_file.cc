#include "trainer/checkpoint/durable_file.h"

#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "data/file_io.h"

namespace filigree {
namespace {

namespace fs = std::filesystem;

Status WriteError(const std::string& path, const std::string& action, int error) {
  const std::string message = path + ": " + action + " failed: " + std::strerror(error);
  switch (error) {
    case EACCES:
    case EPERM:
    case EROFS:
    case ENOENT:
    case ENOTDIR:
    case EISDIR:
    case ENAMETOOLONG:
      return InvalidInput(message + "; choose a place that can be written");
    case ENOSPC:
    case EDQUOT:
      return MachineError(message + "; free some space on that disk and run again");
    default:
      return MachineError(message);
  }
}

// ".NAME.suffix" beside NAME.
std::string HiddenName(const fs::path& path, const char* suffix) {
  return (path.parent_path() / ("." + path.filename().string() + suffix)).string();
}

}  // namespace

StatusOr<DurableFile> DurableFile::Create(const std::string& path) {
  DurableFile result;
  result.path_ = path;
  result.file_ = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (result.file_ < 0) return WriteError(path, "creating the file", errno);
  result.hash_state_ = XXH64_createState();
  CHECK(result.hash_state_ != nullptr) << "no memory for a checksum";
  XXH64_reset(result.hash_state_, 0);
  return result;
}

DurableFile::DurableFile(DurableFile&& other) noexcept { *this = std::move(other); }

DurableFile& DurableFile::operator=(DurableFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(file_, other.file_);
  std::swap(size_, other.size_);
  std::swap(hash_state_, other.hash_state_);
  return *this;
}

DurableFile::~DurableFile() {
  if (file_ >= 0) close(file_);
  XXH64_freeState(hash_state_);
}

Status DurableFile::Append(const void* data, size_t bytes) {
  CHECK(file_ >= 0) << path_ << " is closed";
  const char* next = static_cast<const char*>(data);
  // Hash and write piece by piece, while the piece is in the cache.
  constexpr size_t kPieceBytes = size_t{1} << 20;
  while (bytes > 0) {
    const ssize_t count = write(file_, next, std::min(bytes, kPieceBytes));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return WriteError(path_, "writing", errno);
    XXH64_update(hash_state_, next, static_cast<size_t>(count));
    next += count;
    bytes -= static_cast<size_t>(count);
    size_ += count;
  }
  return OkStatus();
}

Status DurableFile::Close() {
  const int file = std::exchange(file_, -1);
  const int sync_error = fsync(file) == 0 ? 0 : errno;
  // Some file systems report a failed write only here.
  const int close_error = close(file) == 0 ? 0 : errno;
  if (sync_error != 0) return WriteError(path_, "flushing to the disk", sync_error);
  if (close_error != 0) return WriteError(path_, "closing", close_error);
  return OkStatus();
}

uint64_t DurableFile::hash() const { return XXH64_digest(hash_state_); }

StatusOr<StagedDirectory> StagedDirectory::Begin(const std::string& final_path) {
  fs::path absolute = fs::absolute(final_path).lexically_normal();
  if (!absolute.has_filename()) absolute = absolute.parent_path();  // "out/" is "out"
  std::error_code error;
  fs::create_directories(absolute.parent_path(), error);
  if (error) {
    return WriteError(absolute.parent_path().string(), "creating the directory", error.value());
  }
  const std::string partial = HiddenName(absolute, ".partial");
  fs::remove_all(partial, error);
  if (error) return WriteError(partial, "removing what an earlier run left", error.value());
  fs::create_directory(partial, error);
  if (error) return WriteError(partial, "creating the directory", error.value());
  StagedDirectory result;
  result.path_ = partial;
  result.final_path_ = absolute.string();
  return result;
}

StagedDirectory::StagedDirectory(StagedDirectory&& other) noexcept { *this = std::move(other); }

StagedDirectory& StagedDirectory::operator=(StagedDirectory&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(final_path_, other.final_path_);
  return *this;
}

StagedDirectory::~StagedDirectory() {
  std::error_code ignored;  // nobody can be told, and the next Begin tries again
  if (!path_.empty()) fs::remove_all(path_, ignored);
}

Status StagedDirectory::Commit() {
  RETURN_IF_ERROR(SyncDirectory(path_));
  const std::string parent = fs::path(final_path_).parent_path().string();
  // One atomic exchange where something has the name: there is no moment without a complete one.
  if (std::rename(path_.c_str(), final_path_.c_str()) == 0) {
    path_.clear();
    return SyncDirectory(parent);
  }
  if (errno != ENOTEMPTY && errno != EEXIST) {
    return WriteError(final_path_, "renaming into place", errno);
  }
  if (renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, final_path_.c_str(), RENAME_EXCHANGE) != 0) {
    // Not every file system can exchange two names: move the old one aside first.
    const std::string old = HiddenName(final_path_, ".removed");
    std::error_code error;
    fs::remove_all(old, error);
    if (std::rename(final_path_.c_str(), old.c_str()) != 0 ||
        std::rename(path_.c_str(), final_path_.c_str()) != 0) {
      return WriteError(final_path_, "renaming into place", errno);
    }
    path_ = old;
  }
  RETURN_IF_ERROR(SyncDirectory(parent));
  const std::string old = std::exchange(path_, "");
  std::error_code error;
  fs::remove_all(old, error);
  return error ? WriteError(old, "removing the old directory", error.value()) : OkStatus();
}

Status RemoveDirectoryWhole(const std::string& path) {
  const std::string hidden = HiddenName(path, ".removed");
  std::error_code error;
  fs::remove_all(hidden, error);
  if (std::rename(path.c_str(), hidden.c_str()) != 0) return WriteError(path, "removing", errno);
  fs::remove_all(hidden, error);
  return error ? WriteError(hidden, "removing", error.value()) : OkStatus();
}

}  // namespace filigree

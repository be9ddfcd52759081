#include "data/file_io.h"

#include <fcntl.h>
#include <glob.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

namespace filigree {

StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) return InvalidInput(path + ": cannot be opened: " + std::strerror(errno));
  struct stat info = {};
  if (fstat(file, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(file);
    return InvalidInput(path + ": is not a regular file");
  }
  MappedFile mapped;
  mapped.size_ = info.st_size;
  if (mapped.size_ > 0) {
    void* data = mmap(nullptr, static_cast<size_t>(mapped.size_), PROT_READ, MAP_SHARED, file, 0);
    if (data == MAP_FAILED) {
      const std::string reason = std::strerror(errno);
      close(file);
      return MachineError(path + ": cannot be mapped into memory: " + reason);
    }
    mapped.data_ = static_cast<const std::byte*>(data);
  }
  close(file);
  return mapped;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), static_cast<size_t>(size_));
}

std::vector<std::string> ExpandGlob(const std::string& pattern) {
  glob_t matches = {};
  std::vector<std::string> paths;
  if (glob(pattern.c_str(), GLOB_BRACE | GLOB_TILDE, nullptr, &matches) == 0) {
    paths.assign(matches.gl_pathv, matches.gl_pathv + matches.gl_pathc);
  }
  globfree(&matches);
  // glob sorts by locale, or by brace alternative; the order of data must not depend on either.
  std::sort(paths.begin(), paths.end());
  paths.erase(std::unique(paths.begin(), paths.end()), paths.end());
  return paths;
}

StatusOr<std::string> ReadFile(const std::string& path) {
  ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(path));
  return std::string(file.text());
}

Status WriteFileAtomically(const std::string& path, std::string_view bytes) {
  struct stat there {};
  if (stat(path.c_str(), &there) == 0 && S_ISDIR(there.st_mode)) {
    return InvalidInput(path + ": is a directory; name a file");
  }
  const std::string temporary = path + ".tmp-" + std::to_string(getpid());
  const int file = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file < 0) return InvalidInput(path + ": cannot be written: " + std::strerror(errno));
  bool written = true;
  for (size_t done = 0; written && done < bytes.size();) {
    const ssize_t count = write(file, bytes.data() + done, bytes.size() - done);
    if (count >= 0) {
      done += static_cast<size_t>(count);
    } else {
      written = errno == EINTR;
    }
  }
  written = written && fsync(file) == 0;
  const int reason = errno;
  close(file);
  if (!written || std::rename(temporary.c_str(), path.c_str()) != 0) {
    const std::string message = std::strerror(written ? errno : reason);
    unlink(temporary.c_str());
    return MachineError(path + ": writing failed: " + message);
  }
  return OkStatus();
}

Status SyncDirectory(const std::string& path) {
  const int directory = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0) return InvalidInput(path + ": cannot be opened: " + std::strerror(errno));
  // Some file systems cannot flush a directory and say so with EINVAL; they have nothing to flush.
  const bool synced = fsync(directory) == 0 || errno == EINVAL;
  const std::string reason = std::strerror(errno);
  close(directory);
  return synced ? OkStatus() : MachineError(path + ": flushing failed: " + reason);
}

uint64_t Hash64(std::string_view bytes, uint64_t seed) {
  return XXH64(bytes.data(), bytes.size(), seed);
}

std::string HashHex(uint64_t hash) {
  char text[17];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

}  // namespace filigree

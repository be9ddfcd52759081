#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "data/token_shard.h"

namespace filigree {
namespace {

std::array<int32_t, 256> Header(DType dtype, int64_t tokens) {
  std::array<int32_t, 256> header = {};
  header[0] = dtype == DType::kU16 ? 20240520 : 20240801;
  header[1] = dtype == DType::kU16 ? 1 : 7;
  header[2] = static_cast<int32_t>(tokens);
  return header;
}

}  // namespace

ShardWriter::ShardWriter(ShardWriterOptions options) : options_(std::move(options)) {
  CHECK(options_.dtype == DType::kU16 || options_.dtype == DType::kU32) << NameOf(options_.dtype);
  CHECK(options_.shard_tokens >= 1 && options_.shard_tokens <= kMaxShardTokens);
}

ShardWriter::~ShardWriter() {
  if (file_ < 0) return;
  close(file_);
  unlink(temporary_path_.c_str());
}

Status ShardWriter::Write(std::span<const int32_t> tokens) {
  while (!tokens.empty()) {
    if (file_ < 0) RETURN_IF_ERROR(OpenShard());
    const size_t room = static_cast<size_t>(options_.shard_tokens - tokens_in_shard_);
    const auto part = tokens.first(std::min(room, tokens.size()));
    if (options_.dtype == DType::kU16) {
      std::vector<uint16_t> narrow(part.size());
      for (size_t i = 0; i < part.size(); ++i) {
        CHECK(part[i] >= 0 && part[i] < 65536) << "token id " << part[i] << " in a uint16 shard";
        narrow[i] = static_cast<uint16_t>(part[i]);
      }
      RETURN_IF_ERROR(Append(narrow.data(), narrow.size() * sizeof(uint16_t)));
    } else {
      RETURN_IF_ERROR(Append(part.data(), part.size_bytes()));
    }
    tokens_in_shard_ += static_cast<int64_t>(part.size());
    tokens = tokens.subspan(part.size());
    if (tokens_in_shard_ == options_.shard_tokens) RETURN_IF_ERROR(CloseShard());
  }
  return OkStatus();
}

Status ShardWriter::Finish() { return file_ < 0 ? OkStatus() : CloseShard(); }

Status ShardWriter::OpenShard() {
  char number[32];
  std::snprintf(number, sizeof(number), "_%06zu.bin", shards_.size());
  const std::string path = options_.prefix + number;
  temporary_path_ = path + ".tmp-" + std::to_string(getpid());
  file_ = open(temporary_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file_ < 0) return InvalidInput(path + ": cannot be written: " + std::strerror(errno));
  shards_.push_back({path, 0, 0});
  tokens_in_shard_ = 0;
  const auto placeholder = Header(options_.dtype, 0);
  return Append(placeholder.data(), sizeof(placeholder));
}

Status ShardWriter::CloseShard() {
  Shard& shard = shards_.back();
  shard.tokens = tokens_in_shard_;
  const auto header = Header(options_.dtype, tokens_in_shard_);
  const bool written =
      pwrite(file_, header.data(), sizeof(header), 0) == static_cast<ssize_t>(sizeof(header)) &&
      fsync(file_) == 0 && std::rename(temporary_path_.c_str(), shard.path.c_str()) == 0;
  if (!written) return MachineError(shard.path + ": writing failed: " + std::strerror(errno));
  close(file_);
  file_ = -1;
  ASSIGN_OR_RETURN(const MappedFile file, MappedFile::Open(shard.path));
  shard.hash = Hash64(file.text());
  return OkStatus();
}

Status ShardWriter::Append(const void* bytes, size_t count) {
  const char* data = static_cast<const char*>(bytes);
  while (count > 0) {
    const ssize_t written = write(file_, data, count);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) {
      return MachineError(shards_.back().path + ": writing failed: " + std::strerror(errno));
    }
    data += written;
    count -= static_cast<size_t>(written);
  }
  return OkStatus();
}

}  // namespace filigree

#include "data/byte_stream.h"

#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>

#include "data/file_io.h"

namespace filigree {
namespace {

constexpr size_t kBufferBytes = 256 << 10;

// gzip of one or more members, or no compression at all: zlib tells them apart.
class GzipStream : public ByteStream {
 public:
  GzipStream(const std::string& path, gzFile file) : ByteStream(path), file_(file) {
    gzbuffer(file_, kBufferBytes);
  }
  ~GzipStream() override { gzclose(file_); }

  int64_t input_bytes() const override { return gzoffset(file_); }

 protected:
  StatusOr<size_t> Read(char* out, size_t size) override {
    const int count = gzread(file_, out, static_cast<unsigned>(size));
    int code = Z_OK;
    const char* reason = gzerror(file_, &code);
    // A truncated member is reported as Z_BUF_ERROR beside what was read of it.
    if (count < 0 || code == Z_BUF_ERROR) return Damaged(reason);
    return static_cast<size_t>(count);
  }

 private:
  gzFile file_;
};

// zstd of one or more frames.
class ZstdStream : public ByteStream {
 public:
  ZstdStream(const std::string& path, MappedFile file)
      : ByteStream(path), file_(std::move(file)), context_(ZSTD_createDStream()) {
    input_ = {file_.data(), static_cast<size_t>(file_.size()), 0};
  }
  ~ZstdStream() override { ZSTD_freeDStream(context_); }

  int64_t input_bytes() const override { return static_cast<int64_t>(input_.pos); }

 protected:
  StatusOr<size_t> Read(char* out, size_t size) override {
    ZSTD_outBuffer output = {out, size, 0};
    while (output.pos == 0 && (input_.pos < input_.size || !frame_done_)) {
      const size_t before = input_.pos;
      const size_t result = ZSTD_decompressStream(context_, &output, &input_);
      if (ZSTD_isError(result)) return Damaged(ZSTD_getErrorName(result));
      frame_done_ = result == 0;
      if (output.pos == 0 && input_.pos == before) return Damaged("unexpected end of file");
    }
    return output.pos;
  }

 private:
  MappedFile file_;
  ZSTD_DStream* context_;
  ZSTD_inBuffer input_;
  bool frame_done_ = true;
};

}  // namespace

StatusOr<std::unique_ptr<ByteStream>> ByteStream::Open(const std::string& path) {
  constexpr std::string_view kZstdMagic("\x28\xB5\x2F\xFD", 4);
  ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::Open(path));
  if (mapped.text().starts_with(kZstdMagic)) {
    return std::unique_ptr<ByteStream>(std::make_unique<ZstdStream>(path, std::move(mapped)));
  }
  const gzFile file = gzopen(path.c_str(), "rb");
  if (file == nullptr) return InvalidInput(path + ": cannot be opened");
  return std::unique_ptr<ByteStream>(std::make_unique<GzipStream>(path, file));
}

Status ByteStream::Damaged(const std::string& reason) const {
  return InvalidInput(path_ + ": damaged or truncated: " + reason + "; copy it again");
}

// Makes the unread part non-empty; false at the end.
StatusOr<bool> ByteStream::Fill() {
  if (begin_ < end_) return true;
  buffer_.resize(kBufferBytes);
  ASSIGN_OR_RETURN(end_, Read(buffer_.data(), buffer_.size()));
  begin_ = 0;
  return end_ > 0;
}

Status ByteStream::ReadAll(std::string* out) {
  while (true) {
    ASSIGN_OR_RETURN(const bool more, Fill());
    if (!more) return OkStatus();
    out->append(buffer_.data() + begin_, end_ - begin_);
    begin_ = end_;
  }
}

StatusOr<bool> ByteStream::ReadLine(std::string* line) {
  line->clear();
  bool any = false;
  while (true) {
    ASSIGN_OR_RETURN(const bool more, Fill());
    if (!more) return any;
    any = true;
    const char* start = buffer_.data() + begin_;
    const auto* newline = static_cast<const char*>(std::memchr(start, '\n', end_ - begin_));
    const size_t length = newline != nullptr ? newline - start : end_ - begin_;
    line->append(start, length);
    begin_ += length + (newline != nullptr ? 1 : 0);
    if (newline != nullptr) return true;
  }
}

}  // namespace filigree

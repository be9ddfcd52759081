// Token shards: files of token ids, read through a memory map and written atomically.
//
// Formats read (all little-endian):
//   llm.c     1024-byte header of 256 int32 {magic, version, token count, 0...}, then the tokens:
//             magic 20240520 version 1: uint16; magic 20240801 version 7: uint32. Filigree's own.
//   Megatron  PREFIX.idx ("MMIDIDX\0\0", version 1, dtype, sequence lengths, byte pointers,
//   document
//             index) beside PREFIX.bin. Element types u8, u16, i32, i64.
//   nanoGPT   bare uint16 (or uint32) without any header. Nothing in such a file says what it is,
//   so
//             it is read only where the caller names its element type.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/file_io.h"
#include "kernels/base/dtype.h"
#include "kernels/base/status.h"

namespace filigree {

enum class ShardFormat { kLlmC, kMegatron, kBare };
// "llm.c", "Megatron", "bare".
std::string_view NameOf(ShardFormat format);

// One open shard. Move-only; reads are const and may run on several threads at once.
class TokenShard {
 public:
  // Opens `path`: an llm.c shard, either file or the bare prefix of a Megatron pair, or, where
  // `bare_dtype` (kU16 or kU32) is given, a headerless file. A recognised header or pair wins over
  // `bare_dtype`. Errors (InvalidInput): missing, truncated, empty, foreign magic or version.
  static StatusOr<TokenShard> Open(const std::string& path, std::optional<DType> bare_dtype = {});

  const std::string& path() const { return path_; }
  ShardFormat format() const { return format_; }
  // The element type in the file: kU8, kU16, kU32, kI32 or kI64.
  DType dtype() const { return dtype_; }
  // Tokens in the file; at least 1.
  int64_t size() const { return size_; }

  // Copies tokens [begin, begin + count) to out. An id that does not fit int32 is cut to its low 32
  // bits: FindOutside tells such files first.
  void Read(int64_t begin, int64_t count, int32_t* out) const;

  // The first position whose id is not in [0, vocab_size), and that id; nothing where all are.
  // Reads the whole file once unless the element type alone proves it.
  struct Misfit {
    int64_t position;
    int64_t id;
  };
  std::optional<Misfit> FindOutside(int64_t vocab_size) const;

  // Megatron: the first token of each document, from the index. Empty for the other formats.
  const std::vector<int64_t>& document_starts() const { return document_starts_; }

 private:
  explicit TokenShard(MappedFile file) : file_(std::move(file)) {}
  static StatusOr<TokenShard> OpenMegatron(const std::string& prefix);
  static StatusOr<TokenShard> OpenSingleFile(const std::string& path,
                                             std::optional<DType> bare_dtype);

  MappedFile file_;
  std::string path_;
  ShardFormat format_ = ShardFormat::kLlmC;
  DType dtype_ = DType::kU16;
  int64_t offset_bytes_ = 0;  // of the first token in file_
  int64_t size_ = 0;
  std::vector<int64_t> document_starts_;
};

// The largest number of tokens a shard may hold: llm.c's own loader seeks with 32-bit offsets.
inline constexpr int64_t kMaxShardTokens = 500'000'000;

struct ShardWriterOptions {
  std::string prefix;         // "out/train" writes out/train_000000.bin, out/train_000001.bin, ...
  DType dtype = DType::kU16;  // kU16 or kU32
  int64_t shard_tokens = 100'000'000;  // 1 .. kMaxShardTokens
};

// Streams tokens into llm.c shards. Each shard is written under a temporary name, flushed and
// renamed when it is full or Finish is called; a writer destroyed before Finish removes its
// unfinished file and leaves finished shards.
class ShardWriter {
 public:
  struct Shard {
    std::string path;
    int64_t tokens;
    uint64_t hash;  // XXH64 of the whole file
  };

  explicit ShardWriter(ShardWriterOptions options);
  ~ShardWriter();
  ShardWriter(const ShardWriter&) = delete;
  ShardWriter& operator=(const ShardWriter&) = delete;

  // Appends tokens, which must fit the element type; a document may run across shards.
  Status Write(std::span<const int32_t> tokens);
  // Completes the last shard. Nothing was written where no token came: no empty shard exists.
  Status Finish();
  const std::vector<Shard>& shards() const { return shards_; }

 private:
  Status OpenShard();
  Status CloseShard();
  Status Append(const void* bytes, size_t count);

  ShardWriterOptions options_;
  std::vector<Shard> shards_;
  std::string temporary_path_;
  int file_ = -1;
  int64_t tokens_in_shard_ = 0;
};

}  // namespace filigree

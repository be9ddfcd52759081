#include "data/token_shard.h"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

namespace filigree {
namespace {

static_assert(std::endian::native == std::endian::little, "shards are mapped, not converted");

constexpr size_t kHeaderInts = 256;
constexpr int64_t kHeaderBytes = kHeaderInts * sizeof(int32_t);

// The two llm.c forms.
struct LlmCForm {
  int32_t magic, version;
  DType dtype;
};
constexpr LlmCForm kLlmCForms[] = {{20240520, 1, DType::kU16}, {20240801, 7, DType::kU32}};

constexpr std::string_view kMegatronMagic("MMIDIDX\0\0", 9);
constexpr int64_t kMegatronHeaderBytes = 34;

// An unaligned little-endian value; the caller has checked that it lies inside.
template <typename T>
T LoadAt(const std::byte* data, int64_t offset) {
  T value;
  std::memcpy(&value, data + offset, sizeof(T));
  return value;
}

// Calls visit(pointer to const element) with the element type of `dtype`; elements may be
// unaligned.
template <typename Visitor>
auto WithElementType(DType dtype, Visitor&& visit) {
  switch (dtype) {
    case DType::kU8:
      return visit(uint8_t{});
    case DType::kU16:
      return visit(uint16_t{});
    case DType::kU32:
      return visit(uint32_t{});
    case DType::kI32:
      return visit(int32_t{});
    default:
      CHECK(dtype == DType::kI64) << "no token type: " << NameOf(dtype);
      return visit(int64_t{});
  }
}

bool StripSuffix(std::string* path, std::string_view suffix) {
  if (!path->ends_with(suffix)) return false;
  path->resize(path->size() - suffix.size());
  return true;
}

bool Exists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

std::string Bytes(int64_t count) { return std::to_string(count) + " bytes"; }

// The prefix where `path` is (part of) a Megatron pair, else empty.
std::string MegatronPrefix(const std::string& path) {
  std::string prefix = path;
  if (StripSuffix(&prefix, ".idx")) return prefix;
  StripSuffix(&prefix, ".bin");
  return Exists(prefix + ".idx") && (prefix != path || !Exists(path)) ? prefix : "";
}

StatusOr<DType> MegatronDType(uint8_t code, const std::string& path) {
  switch (code) {
    case 1:
      return DType::kU8;
    case 4:
      return DType::kI32;
    case 5:
      return DType::kI64;
    case 8:
      return DType::kU16;
    default:
      return InvalidInput(path + ": element type code " + std::to_string(code) +
                          " holds no token ids; expected 1 (u8), 4 (i32), 5 (i64) or 8 (u16)");
  }
}

}  // namespace

std::string_view NameOf(ShardFormat format) {
  switch (format) {
    case ShardFormat::kLlmC:
      return "llm.c";
    case ShardFormat::kMegatron:
      return "Megatron";
    case ShardFormat::kBare:
      return "bare";
  }
  return "";
}

StatusOr<TokenShard> TokenShard::Open(const std::string& path, std::optional<DType> bare_dtype) {
  const std::string prefix = MegatronPrefix(path);
  return prefix.empty() ? OpenSingleFile(path, bare_dtype) : OpenMegatron(prefix);
}

StatusOr<TokenShard> TokenShard::OpenSingleFile(const std::string& path,
                                                std::optional<DType> bare_dtype) {
  if (!Exists(path))
    return InvalidInput(path + ": no such token shard; mend the path or run `filigree prepare`");
  ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  TokenShard shard(std::move(file));
  shard.path_ = path;
  const int64_t file_bytes = shard.file_.size();
  const std::byte* data = shard.file_.data();

  const int32_t magic = file_bytes >= 4 ? LoadAt<int32_t>(data, 0) : 0;
  const auto form = std::find_if(std::begin(kLlmCForms), std::end(kLlmCForms),
                                 [&](const LlmCForm& f) { return f.magic == magic; });
  if (form != std::end(kLlmCForms)) {
    if (file_bytes < kHeaderBytes) {
      return InvalidInput(path + ": truncated inside its header: " + Bytes(file_bytes) +
                          "; copy it again or prepare the data again");
    }
    const int32_t version = LoadAt<int32_t>(data, 4), count = LoadAt<int32_t>(data, 8);
    if (version != form->version) {
      return InvalidInput(path + ": token shard with magic " + std::to_string(magic) +
                          " has version " + std::to_string(version) + "; expected " +
                          std::to_string(form->version));
    }
    shard.dtype_ = form->dtype;
    shard.offset_bytes_ = kHeaderBytes;
    shard.size_ = count;
    const int64_t expected = kHeaderBytes + count * static_cast<int64_t>(SizeOf(form->dtype));
    if (count < 0 || expected != file_bytes) {
      return InvalidInput(path + ": " + (file_bytes < expected ? "truncated" : "damaged") +
                          ": its header promises " + std::to_string(count) + " tokens (" +
                          Bytes(expected) + "), the file has " + Bytes(file_bytes) +
                          "; copy it again or prepare the data again");
    }
  } else if (bare_dtype.has_value()) {
    CHECK(*bare_dtype == DType::kU16 || *bare_dtype == DType::kU32) << NameOf(*bare_dtype);
    const int64_t element = static_cast<int64_t>(SizeOf(*bare_dtype));
    if (file_bytes % element != 0) {
      return InvalidInput(path + ": " + Bytes(file_bytes) + " is no multiple of " +
                          std::to_string(element) + ": truncated, or not bare " +
                          std::string(NameOf(*bare_dtype)) +
                          " tokens; copy it again or give the dtype that it was written in");
    }
    shard.format_ = ShardFormat::kBare;
    shard.dtype_ = *bare_dtype;
    shard.size_ = file_bytes / element;
  } else {
    return InvalidInput(path + ": not a token shard (first word " + std::to_string(magic) +
                        "); expected magic 20240520 or 20240801, or a Megatron .bin/.idx pair; "
                        "for a nanoGPT file set data.bare_dtype");
  }
  if (shard.size_ == 0) return InvalidInput(path + ": holds no tokens; leave the file out");
  return shard;
}

StatusOr<TokenShard> TokenShard::OpenMegatron(const std::string& prefix) {
  const std::string index_path = prefix + ".idx", data_path = prefix + ".bin";
  for (const std::string& path : {index_path, data_path}) {
    if (!Exists(path)) {
      return InvalidInput(path + ": missing; a Megatron dataset is a pair of .idx and .bin");
    }
  }
  ASSIGN_OR_RETURN(const MappedFile index, MappedFile::Open(index_path));
  if (index.size() < kMegatronHeaderBytes ||
      index.text().substr(0, kMegatronMagic.size()) != kMegatronMagic ||
      LoadAt<uint64_t>(index.data(), 9) != 1) {
    return InvalidInput(index_path +
                        ": not a Megatron index of version 1; write the pair again with "
                        "Megatron's preprocess_data.py");
  }
  ASSIGN_OR_RETURN(const DType dtype, MegatronDType(LoadAt<uint8_t>(index.data(), 17), index_path));
  const int64_t sequences = LoadAt<int64_t>(index.data(), 18);
  const int64_t documents = LoadAt<int64_t>(index.data(), 26);
  // Each count alone is bounded by the file first, so that the sums below cannot overflow.
  const bool plausible =
      sequences >= 0 && documents >= 1 && sequences <= index.size() && documents <= index.size();
  const int64_t lengths = kMegatronHeaderBytes;
  const int64_t pointers = lengths + 4 * (plausible ? sequences : 0);
  const int64_t boundaries = pointers + 8 * (plausible ? sequences : 0);
  if (!plausible || boundaries + 8 * documents > index.size()) {
    return InvalidInput(index_path + ": truncated: its header promises " +
                        std::to_string(sequences) + " sequences and " + std::to_string(documents) +
                        " document boundaries; copy it again");
  }

  ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(data_path));
  TokenShard shard(std::move(file));
  shard.path_ = data_path;
  shard.format_ = ShardFormat::kMegatron;
  shard.dtype_ = dtype;
  const int64_t element = static_cast<int64_t>(SizeOf(dtype));
  std::vector<int64_t> starts(sequences + 1, 0);  // in tokens
  for (int64_t s = 0; s < sequences; ++s) {
    const int32_t length = LoadAt<int32_t>(index.data(), lengths + 4 * s);
    if (length < 0 || LoadAt<int64_t>(index.data(), pointers + 8 * s) != starts[s] * element) {
      return InvalidInput(index_path + ": sequence " + std::to_string(s) +
                          " does not follow its predecessor in the .bin; write the pair again "
                          "with Megatron's preprocess_data.py or merge_datasets.py");
    }
    starts[s + 1] = starts[s] + length;
  }
  shard.size_ = starts[sequences];
  if (shard.size_ * element != shard.file_.size()) {
    return InvalidInput(data_path + ": truncated or foreign: its index promises " +
                        Bytes(shard.size_ * element) + ", the file has " +
                        Bytes(shard.file_.size()) + "; copy the pair again");
  }
  for (int64_t d = 0; d + 1 < documents; ++d) {
    const int64_t sequence = LoadAt<int64_t>(index.data(), boundaries + 8 * d);
    if (sequence < 0 || sequence > sequences) {
      return InvalidInput(index_path + ": document " + std::to_string(d) + " begins at sequence " +
                          std::to_string(sequence) + " of " + std::to_string(sequences));
    }
    const int64_t start = starts[sequence];
    // Documents without tokens are no documents.
    const bool repeated = !shard.document_starts_.empty() && shard.document_starts_.back() >= start;
    if (start < shard.size_ && !repeated) shard.document_starts_.push_back(start);
  }
  if (shard.size_ == 0) return InvalidInput(data_path + ": holds no tokens; leave the pair out");
  return shard;
}

void TokenShard::Read(int64_t begin, int64_t count, int32_t* out) const {
  CHECK(begin >= 0 && count >= 0 && begin + count <= size_)
      << path_ << ": tokens " << begin << " + " << count << " of " << size_;
  WithElementType(dtype_, [&](auto zero) {
    using T = decltype(zero);
    const std::byte* data = file_.data() + offset_bytes_ + begin * static_cast<int64_t>(sizeof(T));
    for (int64_t i = 0; i < count; ++i) {
      out[i] = static_cast<int32_t>(LoadAt<T>(data, i * static_cast<int64_t>(sizeof(T))));
    }
  });
}

std::optional<TokenShard::Misfit> TokenShard::FindOutside(int64_t vocab_size) const {
  return WithElementType(dtype_, [&](auto zero) -> std::optional<Misfit> {
    using T = decltype(zero);
    // As unsigned, a negative id is beyond every vocabulary too.
    using U = std::make_unsigned_t<T>;
    if (static_cast<uint64_t>(std::numeric_limits<U>::max()) < static_cast<uint64_t>(vocab_size)) {
      return std::nullopt;
    }
    const U limit = static_cast<U>(vocab_size);
    const std::byte* data = file_.data() + offset_bytes_;
    constexpr int64_t kBlock = 4096;  // a branch-free maximum a block, which vectorises
    for (int64_t begin = 0; begin < size_; begin += kBlock) {
      const int64_t end = std::min(size_, begin + kBlock);
      U largest = 0;
      for (int64_t i = begin; i < end; ++i) {
        largest = std::max(largest, LoadAt<U>(data, i * static_cast<int64_t>(sizeof(T))));
      }
      for (int64_t i = begin; largest >= limit && i < end; ++i) {
        const T id = LoadAt<T>(data, i * static_cast<int64_t>(sizeof(T)));
        if (static_cast<U>(id) >= limit) return Misfit{i, static_cast<int64_t>(id)};
      }
    }
    return std::nullopt;
  });
}

}  // namespace filigree

// Safetensors files: 8 bytes of header length, a JSON header, then the tensors' bytes, row-major
// and little-endian, without holes. A model may be one file or several with an index.
//
// Reading is strict: header and file sizes, overlaps, holes, duplicate keys, unknown dtypes and
// sizes that do not follow from the shape are InvalidInput, with file and tensor in the message.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/file_io.h"
#include "kernels/base/dtype.h"
#include "kernels/base/status.h"
#include "trainer/checkpoint/durable_file.h"

namespace filigree {

using SafetensorsMetadata = std::map<std::string, std::string>;

// "[3, 4]".
std::string ShapeText(const std::vector<int64_t>& shape);

// A tensor about to be written.
struct TensorSpec {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;

  int64_t count() const;
  int64_t bytes() const { return count() * static_cast<int64_t>(SizeOf(dtype)); }
};

// Streams tensors into a new file in the order in which they were announced. Where dtypes are
// mixed, announce wider ones first: tensors are then aligned to their elements. Move-only.
class SafetensorsWriter {
 public:
  // Writes the header. `metadata` gains {"format": "pt"}, which transformers asks for.
  static StatusOr<SafetensorsWriter> Create(const std::string& path,
                                            std::vector<TensorSpec> tensors,
                                            SafetensorsMetadata metadata);

  // The next tensor, whole: its elements in the announced dtype.
  Status Append(const void* data, int64_t bytes);
  // Flushes to the disk. Every announced tensor must have been appended.
  Status Close();

  const std::vector<TensorSpec>& tensors() const { return tensors_; }
  const std::string& path() const { return file_.path(); }
  int64_t size() const { return file_.size(); }
  // XXH64 of the file.
  uint64_t hash() const { return file_.hash(); }

 private:
  SafetensorsWriter(DurableFile file, std::vector<TensorSpec> tensors)
      : file_(std::move(file)), tensors_(std::move(tensors)) {}

  DurableFile file_;
  std::vector<TensorSpec> tensors_;
  size_t next_ = 0;
};

// An array in memory, and a file of several.
struct NamedArray {
  TensorSpec spec;
  const void* data = nullptr;

  NamedArray(std::string name, DType dtype, std::vector<int64_t> shape, const void* data)
      : spec{std::move(name), dtype, std::move(shape)}, data(data) {}
};
Status WriteSafetensors(const std::string& path, const std::vector<NamedArray>& arrays);

// A tensor of an open file.
struct TensorEntry {
  std::string name;
  std::string dtype;  // as the file says: "BF16", "F16", "I64", ...
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;  // into the mapped file; not necessarily aligned
  std::string file;

  int64_t count() const;
};

// One file, mapped read-only. Entries point into it: it must outlive them. Move-only.
class SafetensorsFile {
 public:
  static StatusOr<SafetensorsFile> Open(const std::string& path);

  const std::string& path() const { return path_; }
  // In the order of the bytes in the file.
  const std::vector<TensorEntry>& tensors() const { return tensors_; }
  // nullptr where there is none.
  const TensorEntry* Find(const std::string& name) const;
  const SafetensorsMetadata& metadata() const { return metadata_; }

 private:
  explicit SafetensorsFile(MappedFile file) : file_(std::move(file)) {}

  MappedFile file_;
  std::string path_;
  std::vector<TensorEntry> tensors_;
  std::map<std::string, size_t> index_;
  SafetensorsMetadata metadata_;
};

// The tensors of a model directory: those of model.safetensors, else those of the files that
// model.safetensors.index.json names, which must agree with it.
class SafetensorsSet {
 public:
  static StatusOr<SafetensorsSet> Open(const std::string& directory);

  const std::vector<SafetensorsFile>& files() const { return files_; }
  const TensorEntry* Find(const std::string& name) const;

 private:
  std::vector<SafetensorsFile> files_;
};

// The elements as floats, from BF16, F16, F32 or F64 (rounded to nearest even); InvalidInput for
// other dtypes.
StatusOr<std::vector<float>> ReadFloats(const TensorEntry& tensor);

// The elements as they are; InvalidInput where the file's dtype is not T's.
template <typename T>
StatusOr<std::vector<T>> ReadElements(const TensorEntry& tensor);

// The text of model.safetensors.index.json for files in a directory: (file name, its tensors).
std::string SafetensorsIndex(
    const std::vector<std::pair<std::string, std::vector<TensorSpec>>>& files);

inline constexpr const char* kSafetensorsIndexName = "model.safetensors.index.json";

}  // namespace filigree

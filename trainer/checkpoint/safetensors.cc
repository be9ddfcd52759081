#include "trainer/checkpoint/safetensors.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <set>
#include <utility>

namespace filigree {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit

struct DTypeInfo {
  const char* name;
  int64_t bytes;
};
constexpr DTypeInfo kDTypes[] = {
    {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1},
    {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
    {"U32", 4},  {"F32", 4}, {"F64", 8}, {"I64", 8},     {"U64", 8},
};

int64_t Product(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

// JSON of a file, with duplicate keys refused: the parser itself would keep the last one.
StatusOr<Json> ParseStrictly(std::string_view text, const std::string& place) {
  std::map<int, std::set<std::string>> seen;
  std::string duplicate;
  auto callback = [&](int depth, Json::parse_event_t event, Json& value) {
    if (event == Json::parse_event_t::object_start) seen[depth + 1].clear();
    if (event == Json::parse_event_t::key) {
      const auto& key = value.get_ref<const std::string&>();
      if (!seen[depth].insert(key).second && duplicate.empty()) duplicate = key;
    }
    return true;
  };
  try {
    Json json = Json::parse(text.begin(), text.end(), callback);
    if (!duplicate.empty()) {
      return InvalidInput(place + ": the key \"" + duplicate + "\" occurs twice");
    }
    return json;
  } catch (const Json::exception& error) {
    return InvalidInput(place + ": is not valid JSON: " + error.what());
  }
}

Status ReadMetadata(const Json& json, const std::string& place, SafetensorsMetadata* metadata) {
  if (!json.is_object()) return InvalidInput(place + ": __metadata__ is not an object");
  for (const auto& [key, value] : json.items()) {
    if (!value.is_string()) {
      return InvalidInput(place + ": __metadata__ \"" + key + "\" is not a string");
    }
    (*metadata)[key] = value.get<std::string>();
  }
  return OkStatus();
}

bool IsListOfCounts(const Json& json) {
  if (!json.is_array()) return false;
  return std::all_of(json.begin(), json.end(), [](const Json& element) {
    return element.is_number_unsigned() && element.get<uint64_t>() <= INT64_MAX;
  });
}

// The bytes that dtype and shape ask for, or -1 where that does not fit 64 bits.
int64_t ExpectedBytes(const DTypeInfo& dtype, const std::vector<int64_t>& shape) {
  int64_t bytes = dtype.bytes;
  for (int64_t extent : shape) {
    if (__builtin_mul_overflow(bytes, extent, &bytes)) return -1;
  }
  return bytes;
}

StatusOr<TensorEntry> ReadEntry(const std::string& name, const Json& json, const std::string& path,
                                std::string_view buffer) {
  const std::string place = path + ": tensor \"" + name + "\"";
  if (!json.is_object() || json.size() != 3 || !json.contains("dtype") ||
      !json["dtype"].is_string() || !json.contains("shape") || !IsListOfCounts(json["shape"]) ||
      !json.contains("data_offsets") || !IsListOfCounts(json["data_offsets"]) ||
      json["data_offsets"].size() != 2) {
    return InvalidInput(place + ": the header entry is not {dtype, shape, data_offsets}");
  }
  TensorEntry entry{.name = name,
                    .dtype = json["dtype"].get<std::string>(),
                    .shape = json["shape"].get<std::vector<int64_t>>(),
                    .bytes = {},
                    .file = path};
  const auto* dtype = std::find_if(std::begin(kDTypes), std::end(kDTypes),
                                   [&](const DTypeInfo& info) { return info.name == entry.dtype; });
  if (dtype == std::end(kDTypes)) {
    return InvalidInput(place + ": unknown dtype \"" + entry.dtype + "\"");
  }
  const auto begin = json["data_offsets"][0].get<int64_t>();
  const auto end = json["data_offsets"][1].get<int64_t>();
  if (begin > end || end > static_cast<int64_t>(buffer.size())) {
    return InvalidInput(place + ": bytes " + std::to_string(begin) + " to " + std::to_string(end) +
                        " do not lie in the file, which holds " + std::to_string(buffer.size()) +
                        " bytes of tensors; it is truncated or damaged: copy it again");
  }
  if (ExpectedBytes(*dtype, entry.shape) != end - begin) {
    return InvalidInput(place + ": " + entry.dtype + " " + ShapeText(entry.shape) +
                        " does not take " + std::to_string(end - begin) + " bytes");
  }
  entry.bytes = std::as_bytes(std::span(buffer.data() + begin, static_cast<size_t>(end - begin)));
  return entry;
}

// The tensors, sorted by place, must cover the buffer without overlap or hole.
Status CheckCoverage(const std::vector<TensorEntry>& tensors, std::string_view buffer,
                     const std::string& path) {
  const auto* next = reinterpret_cast<const std::byte*>(buffer.data());
  const auto* end = next + buffer.size();
  for (const TensorEntry& tensor : tensors) {
    if (tensor.bytes.data() != next) {
      return InvalidInput(
          path + ": tensor \"" + tensor.name + "\" " +
          (tensor.bytes.data() < next ? "overlaps the one before it" : "leaves a hole before it"));
    }
    next += tensor.bytes.size();
  }
  if (next == end) return OkStatus();
  return InvalidInput(path + ": " + std::to_string(end - next) +
                      " bytes after the last tensor belong to none");
}

}  // namespace

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

int64_t TensorSpec::count() const { return Product(shape); }

StatusOr<SafetensorsWriter> SafetensorsWriter::Create(const std::string& path,
                                                      std::vector<TensorSpec> tensors,
                                                      SafetensorsMetadata metadata) {
  metadata["format"] = "pt";
  OrderedJson header;
  header["__metadata__"] = metadata;
  int64_t offset = 0;
  for (const TensorSpec& tensor : tensors) {
    CHECK(!header.contains(tensor.name)) << path << ": tensor " << tensor.name << " twice";
    header[tensor.name] = {{"dtype", NameOf(tensor.dtype)},
                           {"shape", tensor.shape},
                           {"data_offsets", {offset, offset + tensor.bytes()}}};
    offset += tensor.bytes();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  ASSIGN_OR_RETURN(DurableFile file, DurableFile::Create(path));
  RETURN_IF_ERROR(file.Append(&length, sizeof(length)));
  RETURN_IF_ERROR(file.Append(text));
  return SafetensorsWriter(std::move(file), std::move(tensors));
}

Status SafetensorsWriter::Append(const void* data, int64_t bytes) {
  CHECK_LT(next_, tensors_.size()) << path() << " is complete";
  CHECK_EQ(bytes, tensors_[next_].bytes()) << path() << ": tensor " << tensors_[next_].name;
  ++next_;
  return file_.Append(data, static_cast<size_t>(bytes));
}

Status SafetensorsWriter::Close() {
  CHECK_EQ(next_, tensors_.size()) << path() << " lacks tensors";
  return file_.Close();
}

Status WriteSafetensors(const std::string& path, const std::vector<NamedArray>& arrays) {
  std::vector<TensorSpec> specs;
  for (const NamedArray& array : arrays) specs.push_back(array.spec);
  ASSIGN_OR_RETURN(SafetensorsWriter file, SafetensorsWriter::Create(path, std::move(specs), {}));
  for (const NamedArray& array : arrays) {
    RETURN_IF_ERROR(file.Append(array.data, array.spec.bytes()));
  }
  return file.Close();
}

int64_t TensorEntry::count() const { return Product(shape); }

StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  ASSIGN_OR_RETURN(MappedFile mapped, MappedFile::Open(path));
  SafetensorsFile result(std::move(mapped));
  result.path_ = path;
  const std::string_view text = result.file_.text();
  uint64_t length = 0;
  if (text.size() >= sizeof(length)) std::memcpy(&length, text.data(), sizeof(length));
  if (text.size() < sizeof(length) || length > kMaxHeaderBytes ||
      length > text.size() - sizeof(length) || length == 0 || text[sizeof(length)] != '{') {
    return InvalidInput(path + ": is not a safetensors file, or a truncated one (" +
                        std::to_string(text.size()) + " bytes, header length " +
                        std::to_string(length) + "); copy it again");
  }
  ASSIGN_OR_RETURN(const Json header,
                   ParseStrictly(text.substr(sizeof(length), length), path + ": header"));
  const std::string_view buffer = text.substr(sizeof(length) + length);
  for (const auto& [name, json] : header.items()) {
    if (name == "__metadata__") {
      RETURN_IF_ERROR(ReadMetadata(json, path, &result.metadata_));
      continue;
    }
    ASSIGN_OR_RETURN(TensorEntry entry, ReadEntry(name, json, path, buffer));
    result.tensors_.push_back(std::move(entry));
  }
  std::stable_sort(result.tensors_.begin(), result.tensors_.end(),
                   [](const TensorEntry& a, const TensorEntry& b) {
                     return std::pair(a.bytes.data(), a.bytes.size()) <
                            std::pair(b.bytes.data(), b.bytes.size());
                   });
  RETURN_IF_ERROR(CheckCoverage(result.tensors_, buffer, path));
  for (size_t i = 0; i < result.tensors_.size(); ++i) result.index_[result.tensors_[i].name] = i;
  return result;
}

const TensorEntry* SafetensorsFile::Find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

StatusOr<SafetensorsSet> SafetensorsSet::Open(const std::string& directory) {
  SafetensorsSet set;
  const std::string single = directory + "/model.safetensors";
  if (std::filesystem::exists(single)) {
    ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(single));
    set.files_.push_back(std::move(file));
    return set;
  }
  const std::string index_path = directory + "/" + kSafetensorsIndexName;
  if (!std::filesystem::exists(index_path)) {
    return InvalidInput(directory + ": has neither model.safetensors nor " + kSafetensorsIndexName +
                        "; where the weights are in pytorch_model.bin, save them again with "
                        "save_pretrained(..., safe_serialization=True)");
  }
  ASSIGN_OR_RETURN(const std::string text, ReadFile(index_path));
  ASSIGN_OR_RETURN(const Json index, ParseStrictly(text, index_path));
  SafetensorsMetadata file_of;  // tensor -> file
  if (!index.is_object() || !index.contains("weight_map")) {
    return InvalidInput(index_path + ": has no \"weight_map\"");
  }
  RETURN_IF_ERROR(ReadMetadata(index["weight_map"], index_path + ": weight_map", &file_of));
  std::set<std::string> names;
  for (const auto& [tensor, name] : file_of) {
    if (std::filesystem::path(name).filename() != name) {
      return InvalidInput(index_path + ": \"" + name + "\" is not a file of this directory");
    }
    names.insert(name);
  }
  size_t tensors = 0;
  for (const std::string& name : names) {
    ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(directory + "/" + name));
    for (const TensorEntry& tensor : file.tensors()) {
      if (file_of.count(tensor.name) == 0 || file_of[tensor.name] != name) {
        return InvalidInput(file.path() + ": tensor \"" + tensor.name + "\" is not where " +
                            index_path + " says; the files belong to different models");
      }
    }
    tensors += file.tensors().size();
    set.files_.push_back(std::move(file));
  }
  if (tensors == file_of.size()) return set;
  for (const auto& [tensor, name] : file_of) {
    if (set.Find(tensor) != nullptr) continue;
    return InvalidInput(index_path + ": tensor \"" + tensor + "\" is not in " + name);
  }
  return set;
}

const TensorEntry* SafetensorsSet::Find(const std::string& name) const {
  for (const SafetensorsFile& file : files_) {
    if (const TensorEntry* tensor = file.Find(name)) return tensor;
  }
  return nullptr;
}

std::string SafetensorsIndex(
    const std::vector<std::pair<std::string, std::vector<TensorSpec>>>& files) {
  int64_t total = 0;
  Json weight_map = Json::object();
  for (const auto& [name, tensors] : files) {
    for (const TensorSpec& tensor : tensors) {
      total += tensor.bytes();
      weight_map[tensor.name] = name;
    }
  }
  return Json{{"metadata", {{"total_size", total}}}, {"weight_map", weight_map}}.dump(2) + "\n";
}

}  // namespace filigree

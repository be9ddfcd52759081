#include "trainer/checkpoint/manifest.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "data/file_io.h"

namespace filigree {

// What the JSON library looks up for an element of ModelSpec::layer_shapes.
template <typename AnyJson>
void to_json(AnyJson& json, const LayerShape& shape) {
  json = AnyJson{
      {"heads", shape.heads}, {"kv_heads", shape.kv_heads}, {"feed_forward", shape.feed_forward}};
}
template <typename AnyJson>
void from_json(const AnyJson& json, LayerShape& shape) {
  json.at("heads").get_to(shape.heads);
  json.at("kv_heads").get_to(shape.kv_heads);
  json.at("feed_forward").get_to(shape.feed_forward);
}

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "filigree-checkpoint";
// The text begins with this and the checksum's digits.
constexpr std::string_view kChecksumKey = "{\n  \"manifest_xxh64\": \"";
constexpr size_t kChecksumDigits = 16;

template <typename Enum>
struct EnumName {
  Enum value;
  std::string_view name;
};
constexpr EnumName<ModelFamily> kFamilies[] = {{ModelFamily::kLlama, "llama"},
                                               {ModelFamily::kGpt2, "gpt2"}};
constexpr EnumName<Recompute> kRecomputes[] = {{Recompute::kNone, "none"},
                                               {Recompute::kActivations, "activations"},
                                               {Recompute::kLayer, "layer"}};
constexpr EnumName<GateActivation> kGateActivations[] = {{GateActivation::kSilu, "silu"},
                                                         {GateActivation::kIdentity, "identity"}};
constexpr EnumName<InitKind> kInits[] = {{InitKind::kNormal, "normal"},
                                         {InitKind::kZeros, "zeros"},
                                         {InitKind::kOnes, "ones"},
                                         {InitKind::kUniform, "uniform"}};
constexpr EnumName<FactorKind> kFactors[] = {{FactorKind::kNone, "none"},
                                             {FactorKind::kLowRank, "low_rank"},
                                             {FactorKind::kNonlinear, "nonlinear"}};
constexpr EnumName<LayoutKind> kLayouts[] = {{LayoutKind::kDense, "dense"},
                                             {LayoutKind::kUnstructured, "unstructured"},
                                             {LayoutKind::kBlocked, "blocked"},
                                             {LayoutKind::kNM, "n_m"}};

// Both directions of a member: one list of names for writing and reading.
class MemberWriter {
 public:
  template <typename T>
  void operator()(const char* name, const T& value) {
    json[name] = value;
  }
  template <typename Enum, size_t kCount>
  void operator()(const char* name, const Enum& value, const EnumName<Enum> (&names)[kCount]) {
    for (const auto& entry : names) {
      if (entry.value == value) json[name] = entry.name;
    }
  }
  template <typename... Value>
  void Optional(const char* name, const Value&... value) {
    (*this)(name, value...);
  }
  Json json = Json::object();
};

// Throws Json::exception or std::out_of_range for members that are missing or not what they should
// be; ParseManifest turns that into a Status.
class MemberReader {
 public:
  explicit MemberReader(const Json& json) : json_(json) {}
  template <typename T>
  void operator()(const char* name, T& value) {
    json_.at(name).get_to(value);
  }
  // Keeps the default where a file of an earlier release lacks the member.
  template <typename... Value>
  void Optional(const char* name, Value&&... value) {
    if (json_.contains(name)) (*this)(name, value...);
  }
  template <typename Enum, size_t kCount>
  void operator()(const char* name, Enum& value, const EnumName<Enum> (&names)[kCount]) {
    const auto text = json_.at(name).get<std::string>();
    for (const auto& entry : names) {
      if (entry.name == text) {
        value = entry.value;
        return;
      }
    }
    throw std::out_of_range(std::string(name) + " \"" + text + "\" is unknown");
  }

 private:
  const Json& json_;
};

template <typename Visitor, typename Info>
void VisitProgress(Visitor& visit, Info& info) {
  visit("step", info.step);
  visit("tokens", info.tokens);
  visit("phase", info.phase);
  visit("world_size", info.world_size);
  visit("seed", info.seed);
  visit("has_moments", info.has_moments);
  visit.Optional("has_born", info.has_born);
  visit.Optional("grad_norm", info.grad_norm);
}

template <typename Visitor, typename Spec>
void VisitModel(Visitor& visit, Spec& model) {
  visit("family", model.family, kFamilies);
  visit("layers", model.layers);
  visit("width", model.width);
  visit("heads", model.heads);
  visit("kv_heads", model.kv_heads);
  visit("head_size", model.head_size);
  visit("feed_forward", model.feed_forward);
  visit("vocab_size", model.vocab_size);
  visit("padded_vocab_size", model.padded_vocab_size);
  visit("max_positions", model.max_positions);
  visit("tied_head", model.tied_head);
  visit("rope_theta", model.rope_theta);
  visit("norm_epsilon", model.norm_epsilon);
  visit("init_std", model.init_std);
  visit("recompute", model.recompute, kRecomputes);
  visit.Optional("gate_activation", model.gate_activation, kGateActivations);
  visit.Optional("gelu_derivative_bits", model.gelu_derivative_bits);
  visit.Optional("norm_width", model.norm_width);
  visit.Optional("layer_shapes", model.layer_shapes);
}

template <typename Visitor, typename P, typename Layout>
void VisitParameter(Visitor& visit, P& parameter, Layout& layout) {
  visit("name", parameter.name);
  visit("shape", parameter.shape);
  visit("layout", layout.kind, kLayouts);
  visit("nonzero_count", layout.nonzero_count);
  visit("block_out", layout.block_out);
  visit("block_in", layout.block_in);
  visit("n", layout.n);
  visit("m", layout.m);
  visit("fingerprint", layout.fingerprint);
  visit("padding_count", parameter.padding_count);
  visit("decay", parameter.decay);
  visit("sparsifiable", parameter.sparsifiable);
  visit("init", parameter.init, kInits);
  visit("init_std", parameter.init_std);
  visit("factor", parameter.factor, kFactors);
  visit("factor_scale", parameter.factor_scale);
}

template <typename Visitor, typename File>
void VisitFile(Visitor& visit, File& file) {
  visit("name", file.name);
  visit("bytes", file.bytes);
  visit("xxh64", file.hash);
}

LayoutDescription Describe(const SparseLayout& layout) {
  return {.kind = layout.kind(),
          .block_out = layout.block_out(),
          .block_in = layout.block_in(),
          .n = layout.n(),
          .m = layout.m(),
          .nonzero_count = layout.nonzero_count(),
          .fingerprint = HashHex(layout.fingerprint())};
}

// Replaces the checksum's digits by zeros and returns the hash of the result.
std::string ChecksumOf(std::string text) {
  text.replace(kChecksumKey.size(), kChecksumDigits, kChecksumDigits, '0');
  return HashHex(Hash64(text));
}

CheckpointManifest ReadMembers(const Json& json) {
  CheckpointManifest manifest;
  MemberReader progress(json);
  VisitProgress(progress, manifest.info);
  MemberReader model(json.at("model"));
  VisitModel(model, manifest.info.model);
  for (const Json& element : json.at("parameters")) {
    MemberReader reader(element);
    VisitParameter(reader, manifest.info.parameters.emplace_back(),
                   manifest.layouts.emplace_back());
  }
  for (const Json& element : json.at("files")) {
    MemberReader reader(element);
    VisitFile(reader, manifest.files.emplace_back());
  }
  return manifest;
}

}  // namespace

std::string FormatManifest(const CheckpointInfo& info, const std::vector<CheckpointFile>& files) {
  MemberWriter top;
  top("manifest_xxh64", std::string(kChecksumDigits, '0'));
  top("format", kFormat);
  top("version", kCheckpointVersion);
  VisitProgress(top, info);
  MemberWriter model;
  VisitModel(model, info.model);
  top("model", model.json);
  top.json["parameters"] = Json::array();
  for (const Parameter& parameter : info.parameters) {
    MemberWriter writer;
    const LayoutDescription layout = Describe(parameter.layout);
    VisitParameter(writer, parameter, layout);
    top.json["parameters"].push_back(writer.json);
  }
  top.json["files"] = Json::array();
  for (const CheckpointFile& file : files) {
    MemberWriter writer;
    VisitFile(writer, file);
    top.json["files"].push_back(writer.json);
  }
  std::string text = top.json.dump(2) + "\n";
  return text.replace(kChecksumKey.size(), kChecksumDigits, ChecksumOf(text));
}

StatusOr<CheckpointManifest> ParseManifest(std::string_view text, const std::string& place) {
  if (!text.starts_with(kChecksumKey) || text.size() < kChecksumKey.size() + kChecksumDigits) {
    return InvalidInput(place +
                        ": is damaged, or no manifest of a checkpoint; copy it again or take "
                        "another checkpoint");
  }
  const std::string expected(text.substr(kChecksumKey.size(), kChecksumDigits));
  const std::string found = ChecksumOf(std::string(text));
  if (found != expected) {
    return InvalidInput(place + ": is damaged: its checksum is " + found + ", expected " +
                        expected + "; copy it again or take another checkpoint");
  }
  try {
    const Json json = Json::parse(text);
    const auto format = json.at("format").get<std::string>();
    const auto version = json.at("version").get<int64_t>();
    if (format != kFormat || version != kCheckpointVersion) {
      return InvalidInput(place + ": is " + format + " version " + std::to_string(version) +
                          ", and this program reads " + kFormat + " version " +
                          std::to_string(kCheckpointVersion) +
                          "; use the release of Filigree that wrote it");
    }
    return ReadMembers(json);
  } catch (const std::exception& error) {  // the JSON library's, and MemberReader's own
    return InvalidInput(place + ": is no valid manifest: " + error.what());
  }
}

bool IsCheckpoint(const std::string& directory) {
  // A prepared data directory has a manifest too. The second test is for a damaged first line.
  const std::string path = directory + "/" + kCheckpointManifestName;
  if (!std::filesystem::is_regular_file(path)) return false;
  const auto text = ReadFile(path);
  return (text.ok() && text->starts_with(kChecksumKey)) ||
         std::filesystem::exists(directory + "/model.safetensors");
}

}  // namespace filigree

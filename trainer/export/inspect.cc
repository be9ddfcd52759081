#include "trainer/export/inspect.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <vector>

#include "data/token_shard.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/checkpoint/safetensors.h"
#include "trainer/export/open_model.h"

namespace filigree {
namespace {

namespace fs = std::filesystem;

using Row = std::vector<std::string>;

// The first column flush left, the others flush right, two spaces between them.
std::string FormatTable(const std::vector<Row>& rows) {
  std::vector<size_t> widths(rows[0].size(), 0);
  for (const Row& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const Row& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) {
      const size_t padding = widths[i] - row[i].size();
      if (i > 0) text.append(2 + padding, ' ');
      text += row[i];
      if (i == 0) text.append(padding, ' ');
    }
    text.resize(text.find_last_not_of(' ') + 1);
    text += '\n';
  }
  return text;
}

// 1234567 as "1,234,567".
std::string Grouped(int64_t count) {
  std::string text = std::to_string(count);
  for (int64_t place = static_cast<int64_t>(text.size()) - 3; place > 0; place -= 3) {
    text.insert(static_cast<size_t>(place), 1, ',');
  }
  return text;
}

std::string Density(int64_t nonzero, int64_t count) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.4f",
                count == 0 ? 0.0 : static_cast<double>(nonzero) / static_cast<double>(count));
  return text;
}

std::string Shorter(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", value);
  return text;
}

std::string LayoutText(const SparseLayout& layout) {
  std::string text = NameOf(layout.kind());
  if (layout.kind() == LayoutKind::kBlocked) {
    text += " " + std::to_string(layout.block_out()) + "x" + std::to_string(layout.block_in());
  }
  if (layout.kind() == LayoutKind::kNM) {
    text += " " + std::to_string(layout.n()) + ":" + std::to_string(layout.m());
  }
  return text;
}

std::string ModelText(const ModelSpec& model) {
  const bool llama = model.family == ModelFamily::kLlama;
  std::string text = llama ? "llama" : "gpt2";
  text += ": " + std::to_string(model.layers) + " layers, width " + std::to_string(model.width) +
          ", " + std::to_string(model.heads) + " heads of " + std::to_string(model.head_size) +
          " (" + std::to_string(model.kv_heads) + " key-value), feed-forward " +
          std::to_string(model.feed_forward) + ", vocabulary " + std::to_string(model.vocab_size) +
          " (padded to " + std::to_string(model.padded_vocab_size) + "), " +
          std::to_string(model.max_positions) + " positions, " +
          (model.tied_head ? "tied" : "untied") + " head";
  return llama ? text + ", RoPE theta " + Shorter(model.rope_theta) : text;
}

StatusOr<std::string> InspectCheckpoint(const std::string& directory) {
  ASSIGN_OR_RETURN(const auto reader, CheckpointReader::Open(directory));
  const CheckpointInfo& info = reader->info();
  std::vector<Row> rows = {{"parameter", "shape", "layout", "logical", "stored", "density"}};
  int64_t logical = 0, nonzero = 0, sparse_logical = 0, sparse_nonzero = 0;
  for (const Parameter& parameter : info.parameters) {
    const SparseLayout& layout = parameter.layout;
    rows.push_back({parameter.name, ShapeText(parameter.shape), LayoutText(layout),
                    Grouped(parameter.logical_count()), Grouped(layout.nonzero_count()),
                    Density(layout.nonzero_count(), parameter.logical_count())});
    logical += parameter.logical_count();
    nonzero += layout.nonzero_count();
    if (!parameter.sparsifiable) continue;
    sparse_logical += parameter.logical_count();
    sparse_nonzero += layout.nonzero_count();
  }
  rows.push_back({"attention and feed-forward weights", "", "", Grouped(sparse_logical),
                  Grouped(sparse_nonzero), Density(sparse_nonzero, sparse_logical)});
  rows.push_back({"total", "", "", Grouped(logical), Grouped(nonzero), Density(nonzero, logical)});
  return "checkpoint " + directory + "\nstep " + Grouped(info.step) + ", " + Grouped(info.tokens) +
         " tokens, phase " + std::to_string(info.phase) + ", " + std::to_string(info.world_size) +
         (info.world_size == 1 ? " rank" : " ranks") + ", seed " + std::to_string(info.seed) +
         (info.has_moments ? ", values and moments\n" : ", values without moments\n") +
         ModelText(info.model) + "\n\n" + FormatTable(rows);
}

// Cells that are not zero; -1 for dtypes that hold no weights.
int64_t CountNonzero(const TensorEntry& tensor) {
  const auto values = ReadFloats(tensor);
  if (!values.ok()) return -1;
  return std::count_if(values->begin(), values->end(), [](float value) { return value != 0; });
}

std::string InspectTensors(const std::vector<const SafetensorsFile*>& files) {
  std::string text;
  std::vector<Row> rows = {{"tensor", "dtype", "shape", "bytes", "values", "nonzero", "density"}};
  int64_t bytes = 0, count = 0, nonzero = 0;
  for (const SafetensorsFile* file : files) {
    text += "safetensors " + file->path() + "\n";
    for (const auto& [key, value] : file->metadata()) text += "  " + key + ": " + value + "\n";
    for (const TensorEntry& tensor : file->tensors()) {
      const int64_t found = CountNonzero(tensor);
      rows.push_back({tensor.name, tensor.dtype, ShapeText(tensor.shape),
                      Grouped(static_cast<int64_t>(tensor.bytes.size())), Grouped(tensor.count()),
                      found < 0 ? "" : Grouped(found),
                      found < 0 ? "" : Density(found, tensor.count())});
      bytes += static_cast<int64_t>(tensor.bytes.size());
      if (found < 0) continue;
      count += tensor.count();
      nonzero += found;
    }
  }
  rows.push_back({"total of floats", "", "", Grouped(bytes), Grouped(count), Grouped(nonzero),
                  Density(nonzero, count)});
  return text + "\n" + FormatTable(rows);
}

StatusOr<std::string> InspectShard(const std::string& path) {
  ASSIGN_OR_RETURN(const TokenShard shard, TokenShard::Open(path));
  std::vector<int32_t> tokens(1 << 16);
  int32_t largest = 0;
  for (int64_t begin = 0; begin < shard.size(); begin += static_cast<int64_t>(tokens.size())) {
    const int64_t count =
        std::min<int64_t>(static_cast<int64_t>(tokens.size()), shard.size() - begin);
    shard.Read(begin, count, tokens.data());
    largest = std::max(largest, *std::max_element(tokens.begin(), tokens.begin() + count));
  }
  const int64_t shown = std::min<int64_t>(shard.size(), 16);
  shard.Read(0, shown, tokens.data());
  std::string first;
  for (int64_t i = 0; i < shown; ++i) first += " " + std::to_string(tokens[static_cast<size_t>(i)]);
  return "token shard " + path + "\n" +
         FormatTable({{"format", std::string(NameOf(shard.format()))},
                      {"element", std::string(NameOf(shard.dtype()))},
                      {"tokens", Grouped(shard.size())},
                      {"largest id", Grouped(largest)}}) +
         "first tokens" + first + (shown < shard.size() ? " ...\n" : "\n");
}

StatusOr<std::string> InspectFile(const std::string& path) {
  if (path.ends_with(".safetensors")) {
    ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(path));
    return InspectTensors({&file});
  }
  return InspectShard(path);
}

}  // namespace

StatusOr<std::string> InspectPath(const std::string& path) {
  std::error_code error;
  if (fs::is_regular_file(path, error)) return InspectFile(path);
  if (IsHuggingFace(path)) {
    ASSIGN_OR_RETURN(const SafetensorsSet set, SafetensorsSet::Open(path));
    std::vector<const SafetensorsFile*> files;
    for (const SafetensorsFile& file : set.files()) files.push_back(&file);
    return InspectTensors(files);
  }
  ASSIGN_OR_RETURN(const std::string checkpoint,
                   ResolveCheckpoint(path,
                                     ", a Hugging Face directory (with config.json), a token "
                                     "shard or a .safetensors file"));
  return InspectCheckpoint(checkpoint);
}

}  // namespace filigree

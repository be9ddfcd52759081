// What the tests of checkpoints and exports share: a small model of odd shapes whose parameters are
// stored in every kind of layout, its values, and checkpoints of it.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "kernels/base/rng.h"
#include "kernels/sparse/random_layout.h"
#include "tests/unit/data_testing.h"
#include "trainer/checkpoint/checkpoint.h"
#include "trainer/checkpoint/stored_values.h"
#include "trainer/export/huggingface_names.h"

namespace filigree {

inline ModelSpec SmallModel(ModelFamily family, bool tied_head) {
  const bool llama = family == ModelFamily::kLlama;
  return {.family = family,
          .layers = 2,
          .width = 24,
          .heads = 4,
          .kv_heads = llama ? 2 : 4,
          .head_size = 6,
          .feed_forward = 40,
          .vocab_size = 259,
          .padded_vocab_size = 320,
          .max_positions = 32,
          .tied_head = tied_head,
          .rope_theta = llama ? 5000.0 : 10000.0,  // GPT-2 has none: the default
          .norm_epsilon = llama ? 1e-6 : 1e-5,
          .init_std = 0.02,
          .recompute = Recompute::kLayer,
          .gelu_derivative_bits = llama ? 0 : 8};
}

// Blocks of 16 x 7 leave edges on every side; q unstructured, k and down 2:4, v dense.
inline void Sparsify(std::vector<Parameter>* parameters) {
  for (Parameter& parameter : *parameters) {
    if (!parameter.sparsifiable) continue;
    const int64_t out = parameter.shape[0], in = parameter.shape[1];
    const std::string& name = parameter.name;
    if (name.find(".q.") != name.npos) {
      parameter.layout = RandomUnstructured(out, in, 0.25, 7, name);
    } else if (name.find(".k.") != name.npos || name.find(".down.") != name.npos) {
      std::vector<int32_t> columns;
      for (int64_t i = 0; i < out * in / 2; ++i) {
        columns.push_back(static_cast<int32_t>(2 * (i % (in / 2)) + (i / (in / 2)) % 2));
      }
      auto layout = SparseLayout::NM(out, in, 1, 2, std::move(columns));
      ASSERT_TRUE(layout.ok()) << layout.status().message();
      parameter.layout = *layout;
    } else if (name.find(".v.") == name.npos) {
      parameter.layout = RandomUniformBlocks(out, in, 16, 7, 0.4, 7, name);
    }
  }
}

inline CheckpointInfo SmallInfo(ModelFamily family, bool tied_head, bool sparse) {
  CheckpointInfo info;
  info.step = 1200;
  info.tokens = 987654321012;
  info.phase = 1;
  info.world_size = 3;
  info.seed = 0xfedcba9876543210u;
  info.model = SmallModel(family, tied_head);
  info.parameters = DenseParametersOf(info.model);
  info.config_text = "name: \"small\"\n";
  if (sparse) Sparsify(&info.parameters);
  return info;
}

// Distinct values at the stored cells; padding, which no file may keep, is 99.
inline std::vector<float> SegmentOf(const Parameter& parameter, CheckpointArray array) {
  std::vector<float> segment(static_cast<size_t>(parameter.segment_count()), 99.0f);
  const auto cells = parameter.layout.LogicalIndices();
  const uint64_t stream = RngStream("test", parameter.name, static_cast<uint64_t>(array));
  for (size_t slot = 0; slot < cells.size(); ++slot) {
    if (cells[slot] >= 0) {
      segment[slot] =
          static_cast<float>(RandomNormal(1, stream, static_cast<uint64_t>(cells[slot])) * 0.05);
    }
  }
  return segment;
}

// The same as a dense logical array, straight from the definition of the layout.
inline std::vector<float> DenseOf(const Parameter& parameter) {
  std::vector<float> dense(static_cast<size_t>(parameter.logical_count()), 0.0f);
  const std::vector<float> segment = SegmentOf(parameter, CheckpointArray::kMaster);
  const auto cells = parameter.layout.LogicalIndices();
  for (size_t slot = 0; slot < cells.size(); ++slot) {
    if (cells[slot] >= 0) dense[static_cast<size_t>(cells[slot])] = segment[slot];
  }
  return dense;
}

inline Status AddAll(const CheckpointInfo& info, CheckpointWriter* writer) {
  for (size_t i = 0; i < info.parameters.size(); ++i) {
    for (auto array : {CheckpointArray::kMaster, CheckpointArray::kM, CheckpointArray::kV}) {
      if (array != CheckpointArray::kMaster && !info.has_moments) continue;
      RETURN_IF_ERROR(
          writer->Add(static_cast<int>(i), array, SegmentOf(info.parameters[i], array)));
    }
  }
  return OkStatus();
}

inline Status WriteSmall(const std::string& directory, const CheckpointInfo& info,
                         const std::string& tokenizer_dir = "") {
  ASSIGN_OR_RETURN(const auto writer, CheckpointWriter::Begin(directory, info, tokenizer_dir));
  RETURN_IF_ERROR(AddAll(info, writer.get()));
  return writer->Commit();
}

// Every file below a directory with its content.
inline std::map<std::string, std::string> FilesBelow(const std::string& directory) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory)) {
    if (!entry.is_regular_file()) continue;
    std::ifstream stream(entry.path(), std::ios::binary);
    files[entry.path().string()] = std::string(std::istreambuf_iterator<char>(stream), {});
  }
  return files;
}

}  // namespace filigree

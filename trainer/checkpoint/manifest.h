// manifest.json of a checkpoint: what it holds, the checksum of each file, and its own.
//
// The first two members are the same in every version of the format: "manifest_xxh64", the XXH64 of
// this file with zeros in the checksum's place, and "format" with its "version".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/base/status.h"
#include "trainer/checkpoint/checkpoint.h"

namespace filigree {

inline constexpr int kCheckpointVersion = 1;
inline constexpr const char* kCheckpointManifestName = "manifest.json";

struct CheckpointFile {
  std::string name;  // relative to the checkpoint
  int64_t bytes = 0;
  std::string hash;  // XXH64, 16 hexadecimal digits
};

// A layout without its indices, which are in layouts.safetensors.
struct LayoutDescription {
  LayoutKind kind = LayoutKind::kDense;
  int block_out = 1, block_in = 1;
  int n = 0, m = 0;
  int64_t nonzero_count = 0;
  std::string fingerprint;
};

struct CheckpointManifest {
  // Parameters come with empty layouts; config_text is not in the manifest.
  CheckpointInfo info;
  std::vector<LayoutDescription> layouts;  // of each parameter
  std::vector<CheckpointFile> files;
};

std::string FormatManifest(const CheckpointInfo& info, const std::vector<CheckpointFile>& files);

// `place` names the file in errors (InvalidInput): damaged, another format, another version.
StatusOr<CheckpointManifest> ParseManifest(std::string_view text, const std::string& place);

// Whether the directory holds a manifest of this format, readable or damaged.
bool IsCheckpoint(const std::string& directory);

}  // namespace filigree

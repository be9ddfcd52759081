// Checkpoints: a directory step_XXXXXXXX with everything needed to go on, at any number of ranks.
//
//   manifest.json          format, version, step, tokens, phase, ranks, model, parameters, files
//   with sizes
//                          and xxh64 checksums
//   config.textproto       the effective configuration
//   model.safetensors      NAME: the parameter's values (F32 master), unpadded: dense ones in
//                          logical shape, sparse ones as their nonzeros [nonzero_count] in stored
//                          order
//   optimizer.safetensors  NAME.m, NAME.v in the same form, and NAME.born where the topology moves
//   layouts.safetensors    NAME.row_offsets (I64) and NAME.columns (I32) of each sparse parameter
//   pruning.safetensors    where the run prunes: zero_at (I64) and smoothed (F64) by unit, and counters
//   tokenizer/             the tokenizer's files, where the run has one
//
// A checkpoint is written aside (".step_XXXXXXXX.partial"), flushed to disk, and renamed: a
// directory with its final name is complete. Readers verify every checksum before they hand
// anything out.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/base/status.h"
#include "trainer/parameter.h"
#include "trainer/pruning/progress.h"
#include "trainer/spec.h"

namespace filigree {

enum class CheckpointArray { kMaster, kM, kV, kBorn };

struct CheckpointInfo {
  int64_t step = 0;    // optimizer steps done
  int64_t tokens = 0;  // tokens seen, all ranks
  int phase = 0;       // index of the phase that did the last step
  int world_size = 1;
  uint64_t seed = 0;
  bool has_moments = true;  // false for imported models
  bool has_born = false;    // updates done when each value joined; never without moments
  // Of the last step that was not skipped; 0: there was none. Per-layer updates clip by it.
  double grad_norm = 0;
  ModelSpec model;
  std::vector<Parameter> parameters;  // with layouts; in creation order
  std::string config_text;            // effective; empty for imported models
  std::optional<PruningProgress> pruning = {};  // where the run prunes
};

// Writes one checkpoint from one process (rank 0).
class CheckpointWriter {
 public:
  // Opens the partial directory beside `directory`; a left-over partial one is replaced.
  // `tokenizer_dir` is copied in (empty: none).
  static StatusOr<std::unique_ptr<CheckpointWriter>> Begin(const std::string& directory,
                                                           CheckpointInfo info,
                                                           const std::string& tokenizer_dir);
  virtual ~CheckpointWriter() = default;
  // For each parameter in order, and for each of master, m, v, born (as far as `info` has them):
  // the segment, `segment_count()` elements in slot order. Padding is dropped.
  virtual Status Add(int parameter, CheckpointArray array, std::span<const float> segment) = 0;
  // Flushes and renames. Without Commit the destructor removes the partial directory.
  virtual Status Commit() = 0;
};

class CheckpointReader {
 public:
  // Reads the manifest and verifies every file's size and checksum. Errors name the file and the
  // mend.
  static StatusOr<std::unique_ptr<CheckpointReader>> Open(const std::string& directory);
  virtual ~CheckpointReader() = default;

  virtual const std::string& directory() const = 0;
  virtual const CheckpointInfo& info() const = 0;
  // The tokenizer's directory, or empty.
  virtual std::string tokenizer_dir() const = 0;
  // The segment in slot order with padding zero: `segment_count()` elements.
  virtual StatusOr<std::vector<float>> ReadSegment(int parameter, CheckpointArray array) const = 0;
  // Logical, dense, row-major: `logical_count()` elements; zero where nothing is stored.
  virtual StatusOr<std::vector<float>> ReadDense(int parameter) const = 0;
};

// RUN/checkpoints/step_00001000 for step 1000.
std::string CheckpointDirectory(const std::string& run_dir, int64_t step);
// The complete checkpoint of the highest step in RUN, or empty where there is none. Partial ones
// are not seen.
std::string NewestCheckpoint(const std::string& run_dir);
// A checkpoint directory, or a run directory's newest: what commands take as CHECKPOINT|RUN.
// `others` ends the message about anything else: what the caller takes besides (", or ...").
StatusOr<std::string> ResolveCheckpoint(const std::string& path, const std::string& others = "");
// Removes all but the newest `keep_last` checkpoints of RUN (0: keeps all), sparing
// `protected_steps`.
Status RemoveOldCheckpoints(const std::string& run_dir, int64_t keep_last,
                            std::span<const int64_t> protected_steps);

}  // namespace filigree

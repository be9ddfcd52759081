// A run's directory: config.textproto, metrics.jsonl, tb/, checkpoints/, layers.json, log.txt.
#pragma once

#include <string>
#include <vector>

#include "kernels/base/status.h"
#include "trainer/parameter.h"

namespace filigree {

// Says whether RUN can be written, without writing: an existing directory with write permission, or
// a path whose nearest existing ancestor is one.
Status CheckWritable(const std::string& run_dir);

// Creates RUN and its folders, opens RUN/log.txt as the log file and stores the effective
// configuration. The configuration of an earlier start that differs is kept beside it as
// config.<n>.textproto.
Status OpenRunDirectory(const std::string& run_dir, const std::string& config_text);

// RUN/layers.json: sparsity, stored and logical count of every sparsifiable weight, for the report.
Status WriteLayers(const std::string& run_dir, const std::vector<Parameter>& parameters);

}  // namespace filigree

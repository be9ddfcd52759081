// From a configuration file to a RunSpec: parse, apply overrides, fill defaults, validate, resolve.
//
// The format is protobuf text format, message RunConfig of configs/run.proto. It is strict: a name
// that the schema does not know is an error. All problems of a file are reported at once, one a
// line, each as "path:line: message" ("--override 2: message" for the second override), sorted by
// place. A file whose brackets do not match is reported up to that point only.
//
// Relative paths inside a configuration are relative to the current directory of the process, not
// to the configuration's.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "kernels/base/status.h"
#include "trainer/spec.h"

namespace filigree {

// The rows of the registries that a configuration may name.
struct KnownNames {
  std::vector<std::string> parameterisations;
  std::vector<std::string> rules = {"static_random"};
  std::vector<std::string> distributions = {"uniform"};
  std::vector<std::string> criteria = {"magnitude"};
  std::vector<std::string> saliency_criteria = {"taylor_second"};
  // What a sparsity entry of this rule means by the fields that it leaves out. An initial sparsity
  // below 0 stands for the target.
  std::map<std::string, SparsitySpec> rule_defaults = {};
};

struct LoadedConfig {
  RunSpec spec;
  // The effective configuration in text format: every default filled in, phases as what they
  // override. It loads to the same spec, also where the prepared data is gone.
  std::string effective_text;
};

// Reads `path` and applies `overrides` in order. An override is text format too and merges field by
// field; a list given in it replaces the whole list. Opens no data, but reads the manifest of
// `data.prepared` where the vocabulary (or the delimiter) is not given. InvalidInput on any
// problem.
StatusOr<LoadedConfig> LoadRunConfig(const std::string& path,
                                     const std::vector<std::string>& overrides,
                                     const KnownNames& known);

// The same for a text in memory, such as the configuration inside a checkpoint; `source` stands for
// the path in messages.
StatusOr<LoadedConfig> ParseRunConfig(const std::string& text, const std::string& source,
                                      const std::vector<std::string>& overrides,
                                      const KnownNames& known);

}  // namespace filigree

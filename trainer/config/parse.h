// Strict text format with every problem reported: a problem inside a value does not end the parse.
#pragma once

#include <string>
#include <vector>

#include "run.pb.h"
#include "trainer/config/problems.h"

namespace filigree::config {

// Parses one source and notes where its fields were written. False: the text is broken beyond a
// value, so that `config` ends somewhere in the middle.
bool ParseSource(const std::string& text, int source, RunConfig* config, Origins* origins,
                 Problems* problems);

// "; did you mean a? Known names are a, b, c".
std::string SuggestName(const std::string& name, const std::vector<std::string>& known);

}  // namespace filigree::config

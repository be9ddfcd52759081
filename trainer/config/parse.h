// Strict text format with every problem reported: a problem inside a value does not end the parse.
#pragma once

#include <string>

#include "run.pb.h"
#include "trainer/config/problems.h"

namespace filigree {

// Parses one source and notes where its fields were written. `config` holds what was understood.
void ParseSource(const std::string& text, int source, RunConfig* config, Origins* origins,
                 Problems* problems);

// The entry of `known` that `name` most likely means; empty where none is close.
std::string ClosestName(const std::string& name, const std::vector<std::string>& known);
// "a, b, c".
std::string JoinNames(const std::vector<std::string>& names);
// "; did you mean a? Known names are a, b, c".
std::string SuggestName(const std::string& name, const std::vector<std::string>& known);

}  // namespace filigree

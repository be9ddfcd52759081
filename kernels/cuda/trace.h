// FILIGREE_TRACE_KERNELS=1 prints, once an operation and shape, which kernel serves it.
#pragma once

#include <string>

namespace filigree {

// True where the environment asks for the trace. Ask before building the strings of TraceChoice.
bool TraceKernels();

// Logs "<operation> <shape>: <choice>", the first time that this line comes up.
void TraceChoice(const std::string& operation, const std::string& shape, const std::string& choice);

}  // namespace filigree

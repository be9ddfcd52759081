// The log of a process: lines for a person, on stderr and, once a run directory exists, in log.txt.
// Only rank 0 prints; other ranks are silenced with SetLogQuiet. Fatal errors go through check.h.
#pragma once

#include <string>

#include "kernels/base/status.h"

namespace filigree {

void LogInfo(const std::string& message);
void LogWarning(const std::string& message);

// Suppresses everything below fatal (ranks other than 0).
void SetLogQuiet(bool quiet);
// Also appends every line, with its time, to `path`. The file is created if absent.
Status SetLogFile(const std::string& path);

// Writes text before each line and repaints after it, so that a progress bar and log lines do not
// tear one another: the bar registers how to clear and to repaint itself.
struct LogScreenHooks {
  void (*clear)(void* context) = nullptr;
  void (*repaint)(void* context) = nullptr;
  void* context = nullptr;
};
void SetLogScreenHooks(LogScreenHooks hooks);

}  // namespace filigree

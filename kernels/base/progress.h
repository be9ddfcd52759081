// What this process is doing, for the watchdog that looks at it from another thread.
//
// The main thread reports; the strings it passes live for ever. Every report is a sign of progress.
#pragma once

#include <cstdint>

namespace filigree {

// The training step in progress, here and on the fatal path of check.h; -1 outside training.
void ReportStep(long long step);
// What the process does from now on: "training", "saving a checkpoint".
void ReportActivity(const char* activity);
// Something was finished and the activity goes on: a micro-batch, a file.
void ReportProgress();
// The collective whose call or wait the process is inside of ("all-reduce"); nullptr: none.
void ReportCollective(const char* collective);
void CountCollective();

struct Progress {
  long long step = -1;
  const char* activity = "";
  const char* collective = nullptr;  // the one that it is inside of, or nullptr
  int64_t collectives = 0;           // started
  double idle_seconds = 0;           // since the last report
};
// Safe in any thread.
Progress ReadProgress();

}  // namespace filigree

#include "kernels/base/progress.h"

#include <atomic>
#include <chrono>

#include "kernels/base/check.h"

namespace filigree {
namespace {

using Clock = std::chrono::steady_clock;

struct ProgressState {
  std::atomic<long long> step = -1;
  std::atomic<const char*> activity = "starting";
  std::atomic<const char*> collective = nullptr;
  std::atomic<int64_t> collectives = 0;
  std::atomic<Clock::rep> last = Clock::now().time_since_epoch().count();
};

ProgressState& State() {
  static ProgressState state;
  return state;
}

}  // namespace

void ReportStep(long long step) {
  State().step = step;
  SetFatalStep(step);
  ReportProgress();
}

void ReportProgress() { State().last = Clock::now().time_since_epoch().count(); }

void ReportActivity(const char* activity) {
  State().activity = activity;
  ReportProgress();
}

void ReportCollective(const char* collective) {
  State().collective = collective;
  ReportProgress();
}

void CountCollective() { ++State().collectives; }

Progress ReadProgress() {
  const Clock::duration idle = Clock::now().time_since_epoch() - Clock::duration(State().last);
  return {.step = State().step,
          .activity = State().activity,
          .collective = State().collective,
          .collectives = State().collectives,
          .idle_seconds = std::chrono::duration<double>(idle).count()};
}

}  // namespace filigree
